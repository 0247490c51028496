package server

import "testing"

func TestQueryIsStrict(t *testing.T) {
	for text, fine := range map[string]bool{
		"":                   true,
		"follow=1&after=7":   true,
		"follow=true":        true,
		"follow=2":           false,
		"after=-1":           false,
		"after=x":            false,
		"unknown=1":          false,
		"after=1&after=2":    false,
		"wait_seconds=0.5":   true,
		"wait_seconds=NaN":   false,
		"wait_seconds=-1":    false,
		"wait_seconds=9999":  false,
		"after=%zz":          false,
		"wait_seconds=1e400": false,
	} {
		q := newQuery(text, "follow", "after", "wait_seconds")
		q.flag("follow")
		q.count("after")
		q.seconds("wait_seconds", 0, 0, 3600)
		if (q.problem == nil) != fine {
			t.Errorf("%q: %v", text, q.problem)
		}
	}
}
