package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// Ref says where some bytes are and what they must be.
type Ref struct {
	URI    string `json:"uri"`
	SHA256 string `json:"sha256"`
	Size   int    `json:"size"`
}

// Asked is what responses.generated and marks.requested say, as far as an evaluator needs it.
type Asked struct {
	Type       string          `json:"type"`
	ID         string          `json:"id"`
	Migration  string          `json:"migration"`
	Submission int             `json:"submission"`
	Candidate  json.RawMessage `json:"candidate"`
	Split      string          `json:"split"`
	Shard      int             `json:"shard"`
	Of         int             `json:"of"`
	Evaluators []string        `json:"evaluators"`
	Evaluator  string          `json:"evaluator"`
	Repeat     int             `json:"repeat"`
	Skipped    bool            `json:"skipped"`
	Responses  *Ref            `json:"responses"`
}

// Range is the scale of a metric.
type Range struct {
	Low            float64 `json:"low"`
	High           float64 `json:"high"`
	HigherIsBetter bool    `json:"higher_is_better"`
}

// Scored is the event eval.scored.
type Scored struct {
	Type          string           `json:"type"`
	SchemaVersion int              `json:"schema_version"`
	Migration     string           `json:"migration"`
	Submission    int              `json:"submission"`
	Source        string           `json:"source"`
	At            string           `json:"at"`
	Candidate     json.RawMessage  `json:"candidate"`
	Split         string           `json:"split"`
	Shard         int              `json:"shard"`
	Of            int              `json:"of"`
	Evaluator     string           `json:"evaluator"`
	Version       string           `json:"version"`
	Repeat        int              `json:"repeat"`
	Metrics       map[string]Range `json:"metrics"`
	Marks         []Mark           `json:"marks"`
	Skipped       bool             `json:"skipped"`
}

// forUs says whether this evaluator is meant.
func (asked Asked) forUs() bool {
	if asked.Type == "marks.requested" {
		return asked.Evaluator == name
	}
	for _, one := range asked.Evaluators {
		if one == name {
			return true
		}
	}
	return false
}

// scoredID is the id of our answer: a hash of what was asked, never of what came out.
func (asked Asked) scoredID() (string, error) {
	var candidate struct {
		Kind  string `json:"kind"`
		Round int    `json:"round"`
	}
	if err := json.Unmarshal(asked.Candidate, &candidate); err != nil {
		return "", err
	}
	key := candidate.Kind
	if key == "adapter" {
		key = fmt.Sprintf("round-%d", candidate.Round)
	}
	return identity("eval.scored", asked.Migration, key, asked.Split, strconv.Itoa(asked.Shard),
		strconv.Itoa(asked.Of), name, version, strconv.Itoa(asked.Repeat), strconv.Itoa(asked.Submission)), nil
}

func identity(fields ...string) string {
	digest := sha256.Sum256([]byte(strings.Join(append([]string{"llamaduo/1"}, fields...), "\n")))
	return hex.EncodeToString(digest[:])
}

// rowsOf checks that the bytes are those that were meant, and reads them.
func rowsOf(body []byte, ref Ref) ([]Row, error) {
	digest := sha256.Sum256(body)
	if len(body) != ref.Size || hex.EncodeToString(digest[:]) != ref.SHA256 {
		return nil, fmt.Errorf("%s: the bytes are not those that the event means", ref.URI)
	}
	rows := []Row{}
	for decoder := json.NewDecoder(bytes.NewReader(body)); decoder.More(); {
		var row Row
		if err := decoder.Decode(&row); err != nil {
			return nil, err
		}
		rows = append(rows, row)
	}
	return rows, nil
}
