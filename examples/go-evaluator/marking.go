package main

import (
	"fmt"
	"strings"
	"unicode"
)

// Row is one line of a shard: a prompt's id, the reference, and the candidate's answers, nil where there is none.
type Row struct {
	Row       string    `json:"row"`
	Reference string    `json:"reference"`
	Answers   []*string `json:"answers"`
}

// Mark is one mark for one answer; a nil Value abstains, and Reason says why.
type Mark struct {
	Row    string   `json:"row"`
	Sample int      `json:"sample"`
	Metric string   `json:"metric"`
	Value  *float64 `json:"value"`
	Reason string   `json:"reason"`
}

const metric = "jaccard"

// marksOf marks every answer of every row: of the different words in answer and reference, the share in both.
func marksOf(rows []Row) []Mark {
	marks := []Mark{}
	for _, row := range rows {
		wanted := wordsOf(row.Reference)
		for sample, answer := range row.Answers {
			mark := Mark{Row: row.Row, Sample: sample, Metric: metric, Reason: "there is no answer to mark"}
			if answer != nil {
				value, reason := shared(wanted, wordsOf(*answer))
				mark.Value, mark.Reason = &value, reason
			}
			marks = append(marks, mark)
		}
	}
	return marks
}

func shared(wanted, given map[string]bool) (float64, string) {
	both := 0
	for word := range given {
		if wanted[word] {
			both++
		}
	}
	all := len(wanted) + len(given) - both
	if all == 0 {
		return 1, "neither has a word"
	}
	return float64(both) / float64(all), fmt.Sprintf("%d of %d words in both", both, all)
}

func wordsOf(text string) map[string]bool {
	words := map[string]bool{}
	for _, word := range strings.FieldsFunc(strings.ToLower(text), func(sign rune) bool {
		return !unicode.IsLetter(sign) && !unicode.IsNumber(sign)
	}) {
		words[word] = true
	}
	return words
}
