package wire

import (
	"encoding/json"
	"testing"
)

func TestDecodeIsStrict(t *testing.T) {
	for text, code := range map[string]string{
		`{"signal":"SIGTERM"}`:    "",
		`{"signal":"SIGTERM"`:     "malformed_request",
		``:                        "malformed_request",
		`{"signal":7}`:            "invalid_request",
		`{"other":1}`:             "invalid_request",
		`{"signal":"SIGTERM"} {}`: "invalid_request",
	} {
		var signal Signal
		problem := Decode([]byte(text), &signal)
		if (problem == nil) != (code == "") || problem != nil && problem.Code != code {
			t.Errorf("%s: %v", text, problem)
		}
	}
}

func TestProblemShowsItsMembers(t *testing.T) {
	text, err := json.Marshal(Fail("stdin_gap", "at %d", 5).With("offset", 5))
	if err != nil || string(text) != `{"code":"stdin_gap","message":"at 5","offset":5}` {
		t.Fatal(string(text), err)
	}
	if Fail("stdin_gap", "").Status() != 409 || Fail("never heard of", "").Status() != 500 {
		t.Fatal("status")
	}
}
