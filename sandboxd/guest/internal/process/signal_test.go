package process

import (
	"syscall"
	"testing"
)

func TestSignalNames(t *testing.T) {
	for name, want := range map[string]syscall.Signal{
		"SIGTERM": syscall.SIGTERM, "SIGKILL": syscall.SIGKILL, "SIGWINCH": syscall.SIGWINCH,
		"SIGRTMIN": firstRealTime, "SIGRTMIN+1": firstRealTime + 1, "SIGRTMAX-1": lastRealTime - 1, "SIGRTMAX": lastRealTime,
	} {
		if got, known := signalNumber(name); !known || got != want {
			t.Errorf("%s: %d %v", name, got, known)
		}
	}
	for _, name := range []string{"", "TERM", "9", "SIGRTMIN-1", "SIGRTMAX+1", "SIGRTMIN+999999999999", "SIGRTMIN+x", "sigterm"} {
		if got, known := signalNumber(name); known {
			t.Errorf("%q is %d", name, got)
		}
	}
	for number := syscall.Signal(1); number <= lastRealTime; number++ {
		if back, known := signalNumber(signalName(number)); number != 32 && number != 33 && (!known || back != number) {
			t.Errorf("%d is called %q", number, signalName(number))
		}
	}
}
