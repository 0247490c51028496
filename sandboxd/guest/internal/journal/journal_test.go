package journal

import (
	"bytes"
	"strings"
	"testing"
)

func TestItIsBoundedAndKeepsTheLast(t *testing.T) {
	for i := range 5000 {
		Note("%d %s", i, strings.Repeat("x", 100))
	}
	Note("%s", strings.Repeat("y", 2*limitBytes))
	Note("last")
	text := Text()
	if len(text) > limitBytes || !bytes.HasSuffix(text, []byte("last\n")) {
		t.Fatal(len(text))
	}
}
