package tree

import (
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"
)

func TestSessionsFindDescendantsAndKillThem(t *testing.T) {
	command := exec.Command("sh", "-c", "sleep 600 & setsid sleep 600 & sleep 600")
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	made, _ := Sessions{}.New()
	made.Started(command.Process.Pid)
	for len(made.Members()) < 4 {
		time.Sleep(time.Millisecond)
	}
	if !slices.Contains(made.Members(), command.Process.Pid) {
		t.Fatal("the process itself is missing")
	}
	never := make(chan struct{})
	if !Kill(made, 10*time.Second, func() <-chan struct{} { return never }) {
		t.Fatal(made.Members())
	}
	_ = command.Wait()
	if !made.Remove() {
		t.Fatal("it is not empty")
	}
}

func TestNumbersIgnoreWhatIsNotAProcess(t *testing.T) {
	if got := numbers("1\n0\n-5\nx\n17\n 23 \n"); !slices.Equal(got, []int{17, 23}) {
		t.Fatal(got)
	}
}
