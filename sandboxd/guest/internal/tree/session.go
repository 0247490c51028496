package tree

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
)

// Sessions makes trees without cgroups, for running outside a sandbox: sessions and descendants. A daemon that leaves both
// is not found.
type Sessions struct{}

// SetLimit does nothing: outside a sandbox the guest bounds nobody.
func (Sessions) SetLimit(int) {}

// New makes an empty tree.
func (Sessions) New() (Tree, error) { return &session{}, nil }

type session struct{ leader atomic.Int64 }

func (s *session) Enter() (func(), error) { return func() {}, nil }
func (s *session) Started(pid int)        { s.leader.Store(int64(pid)) }
func (s *session) Freeze()                {}
func (s *session) Remove() bool           { return len(s.Members()) == 0 }

type relation struct{ pid, parent, session int }

func (s *session) Members() []int {
	leader := int(s.leader.Load())
	if leader == 0 {
		return nil
	}
	var members []int
	relations := living()
	for grown := true; grown; {
		grown = false
		for _, one := range relations {
			if slices.Contains(members, one.pid) {
				continue
			}
			if one.pid == leader || one.session == leader || slices.Contains(members, one.parent) {
				members = append(members, one.pid)
				grown = true
			}
		}
	}
	return members
}

func living() []relation {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var all []relation
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		text, err := os.ReadFile("/proc/" + entry.Name() + "/stat")
		if err != nil {
			continue
		}
		end := strings.LastIndexByte(string(text), ')')
		fields := strings.Fields(string(text[end+1:]))
		if end < 0 || len(fields) < 4 || fields[0] == "Z" || fields[0] == "X" {
			continue
		}
		parent, _ := strconv.Atoi(fields[1])
		sid, _ := strconv.Atoi(fields[3])
		all = append(all, relation{pid, parent, sid})
	}
	return all
}
