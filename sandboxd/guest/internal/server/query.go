package server

import (
	"math"
	"net/url"
	"slices"
	"strconv"

	"sandlot.dev/guest/internal/wire"
)

// query reads parameters strictly: an unknown or repeated one is refused. The first problem is kept.
type query struct {
	values  url.Values
	problem *wire.Problem
}

func newQuery(text string, known ...string) *query {
	values, err := url.ParseQuery(text)
	q := &query{values: values}
	if err != nil {
		q.refuse("%v", err)
	}
	for name, all := range values {
		if !slices.Contains(known, name) || len(all) > 1 {
			q.refuse("parameter %q is unknown or repeated", name)
		}
	}
	return q
}

func (q *query) refuse(format string, arguments ...any) {
	if q.problem == nil {
		q.problem = wire.Fail("invalid_request", format, arguments...)
	}
}

func (q *query) text(name string) *string {
	if !q.values.Has(name) {
		return nil
	}
	value := q.values.Get(name)
	return &value
}

func (q *query) flag(name string) bool {
	switch q.values.Get(name) {
	case "", "0", "false":
		return false
	case "1", "true":
		return true
	}
	q.refuse("%s is 0 or 1", name)
	return false
}

func (q *query) count(name string) *int64 {
	text := q.values.Get(name)
	if text == "" {
		return nil
	}
	value, err := strconv.ParseInt(text, 10, 64)
	if err != nil || value < 0 {
		q.refuse("%s is a number of bytes", name)
	}
	return &value
}

func (q *query) seconds(name string, absent, least, most float64) float64 {
	text := q.values.Get(name)
	if text == "" {
		return absent
	}
	value, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(value) || value < least || value > most {
		q.refuse("%s is a number from %v to %v", name, least, most)
	}
	return value
}
