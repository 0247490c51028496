// Package tree knows all members of a process and its descendants, and ends them.
package tree

import (
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Tree is one process with everything it ever started.
type Tree interface {
	// Enter makes what the calling thread starts a member, until the returned function is called on the same thread.
	// The thread must be locked. After an error nothing needs undoing.
	Enter() (leave func(), err error)
	// Started says which process the tree grows from.
	Started(pid int)
	// Members lists the living, the process itself among them.
	Members() []int
	// Freeze forbids new members, so that a kill catches up with a fork bomb.
	Freeze()
	// Remove forgets the tree. False while it has members.
	Remove() bool
}

// Forest makes trees.
type Forest interface {
	New() (Tree, error)
	// SetLimit bounds the processes of the sandbox.
	SetLimit(processes int)
}

// Signal sends one signal to every member and says how many there were.
func Signal(t Tree, signal syscall.Signal) int {
	members := t.Members()
	for _, pid := range members {
		_ = syscall.Kill(pid, signal)
	}
	return len(members)
}

// Kill ends every member with SIGKILL until there is none, or `patience` is over. `reaped` returns a channel that is
// closed at the next death of any child; a member's death is seen by it once its parents are gone too.
func Kill(t Tree, patience time.Duration, reaped func() <-chan struct{}) bool {
	t.Freeze()
	deadline := time.Now().Add(patience)
	for {
		death := reaped()
		if Signal(t, syscall.SIGKILL) == 0 {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
		select {
		case <-death:
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func numbers(text string) []int {
	var all []int
	for field := range strings.FieldsSeq(text) {
		if number, err := strconv.Atoi(field); err == nil && number > 1 {
			all = append(all, number)
		}
	}
	return all
}

func readNumbers(path string) []int {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	return numbers(string(text))
}
