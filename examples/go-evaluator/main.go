// An evaluator in Go, as a plain client of the bus: what docs/evaluators.md calls the wire protocol, and no more.
//
//	llamaduo evaluator add shared-words
//	LLAMADUO_NATS_URL=nats://127.0.0.1:4222 ./shared-words
package main

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	name    = "shared-words"
	version = "1" // raise it when the same answer would get another mark
	durable = "evaluator-" + name
	tries   = 5
)

type evaluator struct {
	js        nats.JetStreamContext
	heartbeat time.Duration
	source    string
}

func main() {
	stopped, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(stopped); err != nil {
		log.Fatal(err)
	}
}

func run(stopped context.Context) error {
	connection, err := nats.Connect(
		setting("LLAMADUO_NATS_URL", "nats://127.0.0.1:4222"),
		nats.UserInfo(os.Getenv("LLAMADUO_NATS_USER"), os.Getenv("LLAMADUO_NATS_PASSWORD")),
		nats.CustomInboxPrefix("_INBOX_"+durable), // a user of the bus may read its own replies only
		nats.MaxReconnects(-1),
	)
	if err != nil {
		return err
	}
	defer connection.Close()
	js, err := connection.JetStream()
	if err != nil {
		return err
	}
	// Bound to the durable that the operator made: an evaluator makes and changes nothing on the bus.
	subscription, err := js.PullSubscribe("", durable, nats.Bind("EVENTS", durable))
	if err != nil {
		return fmt.Errorf("no place on the bus (llamaduo evaluator add %s): %w", name, err)
	}
	info, err := subscription.ConsumerInfo()
	if err != nil {
		return err
	}
	host, _ := os.Hostname()
	me := evaluator{js, info.Config.AckWait / 3, durable + "/" + setting("LLAMADUO_REPLICA", host)}
	log.Printf("%s, version %s, waits for answers", name, version)
	for stopped.Err() == nil {
		// One at a time, and none ahead: what one replica has not fetched another one can.
		limited, cancel := context.WithTimeout(stopped, 5*time.Second)
		messages, err := subscription.Fetch(1, nats.Context(limited))
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
			log.Printf("fetch: %v", err)
			time.Sleep(time.Second)
		}
		for _, message := range messages {
			me.settle(message)
		}
	}
	return nil
}

// settle works on one message and acks it, sends it back, or buries it.
func (me evaluator) settle(message *nats.Msg) {
	done := make(chan struct{})
	go me.beat(message, done)
	err := me.work(message.Data)
	close(done)
	if err == nil {
		if err := message.AckSync(); err != nil {
			log.Printf("ack: %v", err) // it comes again, gets the same id, and is dropped
		}
		return
	}
	meta, metaErr := message.Metadata()
	if metaErr != nil {
		log.Printf("%v; no message of a stream: %v", err, metaErr)
		return
	}
	log.Printf("try %d: %v", meta.NumDelivered, err)
	if meta.NumDelivered < tries {
		_ = message.NakWithDelay(me.heartbeat * time.Duration(meta.NumDelivered))
	} else if err := me.bury(message, meta, err); err != nil {
		log.Printf("dead letter: %v", err)
		_ = message.NakWithDelay(me.heartbeat)
	} else {
		_ = message.Term()
	}
}

// beat tells the server that we are at it, until done; else it delivers the message to another replica.
func (me evaluator) beat(message *nats.Msg, done <-chan struct{}) {
	ticker := time.NewTicker(me.heartbeat)
	defer ticker.Stop()
	for {
		select {
		case <-done:
			return
		case <-ticker.C:
			_ = message.InProgress()
		}
	}
}

// work marks what was asked for and publishes the marks; nil also where it was not for us.
func (me evaluator) work(body []byte) error {
	var asked Asked
	if err := json.Unmarshal(body, &asked); err != nil {
		return err
	}
	if !asked.forUs() {
		return nil
	}
	id, err := asked.scoredID()
	if err != nil {
		return err
	}
	scored := Scored{
		Type: "eval.scored", SchemaVersion: 1, Migration: asked.Migration, Submission: asked.Submission,
		Source: me.source, At: now(), Candidate: asked.Candidate, Split: asked.Split, Shard: asked.Shard,
		Of: asked.Of, Evaluator: name, Version: version, Repeat: asked.Repeat,
		Metrics: map[string]Range{metric: {Low: 0, High: 1, HigherIsBetter: true}}, Marks: []Mark{},
	}
	if asked.Skipped || asked.Responses == nil {
		scored.Skipped = true
	} else {
		if !strings.HasPrefix(asked.Responses.URI, "obj:") {
			return fmt.Errorf("%s: this example reads the bus's own store only", asked.Responses.URI)
		}
		answers, err := me.read(strings.TrimPrefix(asked.Responses.URI, "obj:"))
		if err != nil {
			return err
		}
		rows, err := rowsOf(answers, *asked.Responses)
		if err != nil {
			return err
		}
		scored.Marks = marksOf(rows)
	}
	return me.publish(id, asked.Migration, scored.Type, name, scored)
}

// read gets an object of the bus's store piece by piece. The client's own ObjectStore makes a consumer for it, which
// a user of the bus may not.
func (me evaluator) read(object string) ([]byte, error) {
	described, err := me.js.GetLastMsg("OBJ_artifacts",
		"$O.artifacts.M."+base64.URLEncoding.EncodeToString([]byte(object)), nats.DirectGet())
	if err != nil {
		return nil, err
	}
	var info struct {
		NUID string `json:"nuid"`
		Size int    `json:"size"`
	}
	if err := json.Unmarshal(described.Data, &info); err != nil {
		return nil, err
	}
	body := []byte{}
	for next := uint64(1); len(body) < info.Size; {
		chunk, err := me.js.GetMsg("OBJ_artifacts", next, nats.DirectGetNext("$O.artifacts.C."+info.NUID))
		if err != nil {
			return nil, err
		}
		body, next = append(body, chunk.Data...), chunk.Sequence+1
	}
	return body, nil
}

// publish waits until the log has the event; the server drops a repeated id. Who says it stands in the subject.
func (me evaluator) publish(id, migration, kind, speaker string, event any) error {
	body, err := json.Marshal(event)
	if err != nil {
		return err
	}
	message := nats.NewMsg(kind + "." + speaker)
	message.Data = body
	for header, value := range map[string]string{
		"Nats-Msg-Id": id, "ce-specversion": "1.0", "ce-id": id, "ce-type": kind, "ce-source": "/llamaduo/" + me.source,
		"ce-time": now(), "content-type": "application/json", "llamaduo-migration": migration,
	} {
		message.Header.Set(header, value)
	}
	_, err = me.js.PublishMsg(message)
	return err
}

// bury keeps the message with the reason and says so in the log: nothing vanishes.
func (me evaluator) bury(message *nats.Msg, meta *nats.MsgMetadata, reason error) error {
	place := fmt.Sprintf("%s\n%d\n%s", meta.Stream, meta.Sequence.Stream, meta.Consumer)
	digest := sha256.Sum256([]byte(place))
	letter := hex.EncodeToString(digest[:])[:32]
	told, err := json.Marshal(reason.Error())
	if err != nil {
		return err
	}
	var asked Asked
	_ = json.Unmarshal(message.Data, &asked) // what cannot be read is buried all the same
	if asked.Migration == "" {
		asked.Migration, asked.Submission = "unknown", 1
	}
	dead := nats.NewMsg("dead." + durable + "." + message.Subject)
	dead.Data = message.Data
	for header, value := range map[string]string{
		"Nats-Msg-Id": "dead:" + letter, "llamaduo-dead-letter": letter, "llamaduo-subject": message.Subject,
		"llamaduo-consumer": meta.Consumer, "llamaduo-error": string(told),
		"llamaduo-attempts": strconv.FormatUint(meta.NumDelivered, 10),
		"llamaduo-seq":      strconv.FormatUint(meta.Sequence.Stream, 10), "llamaduo-migration": asked.Migration,
	} {
		dead.Header.Set(header, value)
	}
	if _, err := me.js.PublishMsg(dead); err != nil {
		return err
	}
	id := identity("work.failed", asked.Migration, durable, asked.ID, letter, strconv.Itoa(asked.Submission))
	return me.publish(id, asked.Migration, "work.failed", durable, map[string]any{
		"type": "work.failed", "schema_version": 1, "migration": asked.Migration, "submission": asked.Submission,
		"source": me.source, "at": now(), "consumer": durable, "subject": message.Subject, "job": asked.ID,
		"error": reason.Error(), "attempts": meta.NumDelivered, "dead_letter": letter,
	})
}

func setting(variable, otherwise string) string {
	if value := os.Getenv(variable); value != "" {
		return value
	}
	return otherwise
}

func now() string { return time.Now().UTC().Format(time.RFC3339Nano) }
