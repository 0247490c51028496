package inittable

import (
	"os"
	"strings"
	"testing"

	"sandlot.dev/guest/internal/wire"
)

func TestSettleReplacesLinks(t *testing.T) {
	root := t.TempDir()
	victim := root + "/victim"
	if err := os.WriteFile(victim, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(root+"/etc", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, root+"/etc/resolv.conf"); err != nil {
		t.Fatal(err)
	}
	Settle(wire.Init{Resolvers: []string{"1.1.1.1", "9.9.9.9"}}, root)
	text, err := os.ReadFile(root + "/etc/resolv.conf")
	kept, _ := os.ReadFile(victim)
	if err != nil || string(text) != "nameserver 1.1.1.1\nnameserver 9.9.9.9\n" || string(kept) != "kept" {
		t.Fatal(string(text), string(kept), err)
	}
	Settle(wire.Init{Resolvers: []string{"1.1.1.1"}}, root+"/missing")
	for _, resolvers := range [][]string{{"1.1.1.1"}, {"1.1.1.1"}, {"1.1.1.1", "8.8.8.8", "9.9.9.9"}} {
		Settle(wire.Init{Resolvers: resolvers}, root)
		want := "nameserver " + strings.Join(resolvers, "\nnameserver ") + "\n"
		if text, err := os.ReadFile(root + "/etc/resolv.conf"); err != nil || string(text) != want {
			t.Fatal(string(text), err)
		}
	}
}
