// Package files works on the sandbox's files with the rights of one of its users, never with the guest's own.
package files

import (
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"sandlot.dev/guest/internal/identity"
)

// as runs a function on a thread that holds exactly the user's rights. The thread is not used again: the runtime ends it
// with its goroutine, because a locked goroutine that returns takes its thread along. A panic is the caller's.
func as(user identity.User, do func() error) error {
	type outcome struct {
		err   error
		cause any
	}
	result := make(chan outcome, 1)
	go func() {
		runtime.LockOSThread()
		var end outcome
		defer func() {
			end.cause = recover()
			result <- end
		}()
		if end.err = become(user); end.err == nil {
			end.err = do()
		}
	}()
	end := <-result
	if end.cause != nil {
		panic(end.cause)
	}
	return end.err
}

// become uses the raw calls: the usual ones change every thread of the program.
func become(user identity.User) error {
	if os.Geteuid() != 0 {
		return nil
	}
	groups := user.Groups
	if len(groups) == 0 {
		groups = []uint32{user.GID}
	}
	if err := setGroups(groups); err != nil {
		return err
	}
	gid, uid := uintptr(user.GID), uintptr(user.UID)
	if _, _, failed := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); failed != 0 {
		return failed
	}
	if _, _, failed := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); failed != 0 {
		return failed
	}
	return nil
}

// setGroups sets the supplementary groups of the calling thread only.
func setGroups(groups []uint32) error {
	_, _, failed := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(unsafe.SliceData(groups))), 0)
	if failed != 0 {
		return failed
	}
	return nil
}
