// Package privilege takes from users' processes what only the guest itself needs.
package privilege

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// kept is what a user's process may ever hold, root and setuid programs included.
var kept = map[uintptr]bool{
	unix.CAP_CHOWN: true, unix.CAP_DAC_OVERRIDE: true, unix.CAP_FSETID: true, unix.CAP_FOWNER: true, unix.CAP_SETGID: true,
	unix.CAP_SETUID: true, unix.CAP_SETFCAP: true, unix.CAP_SETPCAP: true, unix.CAP_NET_BIND_SERVICE: true,
	unix.CAP_SYS_CHROOT: true, unix.CAP_KILL: true, unix.CAP_AUDIT_WRITE: true,
}

// Confine shrinks the bounding set of every thread: what the guest executes can never regain the rest, while the guest,
// which executes nothing itself, keeps what it holds. Also hides the guest's memory from processes it shares a moment of
// its address space with.
func Confine() error {
	for capability := uintptr(0); capability <= unix.CAP_LAST_CAP; capability++ {
		if kept[capability] {
			continue
		}
		if _, _, failed := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, capability, 0); failed != 0 && failed != unix.EINVAL {
			return fmt.Errorf("drop capability %d: %w", capability, failed)
		}
	}
	if _, _, failed := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0); failed != 0 {
		return fmt.Errorf("hide memory: %w", failed)
	}
	return nil
}

// Limit sets what processes inherit: open files, no core dumps, and the number of processes of one user (0: left as is).
func Limit(processes int) error {
	limits := map[int]syscall.Rlimit{
		unix.RLIMIT_NOFILE: {Cur: 65536, Max: 1048576},
		unix.RLIMIT_CORE:   {},
	}
	if processes > 0 {
		limits[unix.RLIMIT_NPROC] = syscall.Rlimit{Cur: uint64(processes), Max: uint64(processes)}
	}
	for which, limit := range limits {
		if err := syscall.Setrlimit(which, &limit); err != nil {
			return fmt.Errorf("limit %d: %w", which, err)
		}
	}
	return nil
}
