// Package spawn starts one program with its pipes or terminal.
package spawn

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"sandlot.dev/guest/internal/identity"
	"sandlot.dev/guest/internal/tree"
	"sandlot.dev/guest/internal/wire"
)

// Order says what to start.
type Order struct {
	Argv        []string
	Env         []string
	Search      string
	Dir         string
	User        identity.User
	TTY         *wire.Size
	Stdin       bool
	MergeStderr bool
	Tree        tree.Tree
}

// Child is a started program. The files are the guest's ends; Stdin is nil without one, Terminal replaces all three.
type Child struct {
	PID      int
	Stdin    *os.File
	Stdout   *os.File
	Stderr   *os.File
	Terminal *os.File
}

// Spawner starts programs. The guest's own identity is root, or in tests whoever runs it.
type Spawner struct {
	mu        sync.Mutex
	null      *os.File
	privilege bool
}

// NewSpawner opens what every program shares.
func NewSpawner() (*Spawner, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return &Spawner{null: null, privilege: os.Geteuid() == 0}, nil
}

// Start runs the program. A *wire.StartError says why it could not be executed; other errors are the guest's own.
func (s *Spawner) Start(order Order) (*Child, *wire.StartError, error) {
	ends, err := s.open(order)
	if err != nil {
		return nil, nil, err
	}
	defer ends.closeTheirs()
	pid, startError, err := s.execute(order, ends)
	if pid == 0 {
		ends.closeOurs()
		return nil, startError, err
	}
	ends.child.PID = pid
	order.Tree.Started(pid)
	return &ends.child, nil, nil
}

type ends struct {
	child  Child
	theirs []int
	files  []uintptr
}

func (e *ends) closeTheirs() {
	for _, file := range e.theirs {
		unix.Close(file)
	}
}

func (e *ends) closeOurs() {
	for _, file := range []*os.File{e.child.Stdin, e.child.Stdout, e.child.Stderr, e.child.Terminal} {
		if file != nil {
			file.Close()
		}
	}
}

func (s *Spawner) open(order Order) (*ends, error) {
	made := &ends{}
	err := made.openAll(order, s.null)
	if err != nil {
		made.closeTheirs()
		made.closeOurs()
		return nil, err
	}
	return made, nil
}

func (e *ends) openAll(order Order, null *os.File) error {
	if order.TTY != nil {
		return e.openTerminal(order)
	}
	e.files = []uintptr{null.Fd(), 0, 0}
	if order.Stdin {
		ours, theirs, err := pipe(writeEnd)
		if err != nil {
			return err
		}
		e.child.Stdin = ours
		e.give(0, theirs)
	}
	for i, file := range []**os.File{&e.child.Stdout, &e.child.Stderr} {
		if i == 1 && order.MergeStderr {
			e.files[2] = e.files[1]
			break
		}
		ours, theirs, err := pipe(readEnd)
		if err != nil {
			return err
		}
		*file = ours
		e.give(i+1, theirs)
	}
	return nil
}

func (e *ends) give(at, theirs int) {
	e.theirs = append(e.theirs, theirs)
	e.files[at] = uintptr(theirs)
}

func (e *ends) openTerminal(order Order) error {
	master, slave, err := pty.Open()
	if err != nil {
		return fmt.Errorf("open a terminal: %w", err)
	}
	defer slave.Close()
	e.child.Terminal = master
	// Another descriptor of the same open file: it must block, as programs expect of a terminal.
	theirs, err := unix.FcntlInt(slave.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a terminal: %w", err)
	}
	e.theirs = []int{theirs}
	e.files = []uintptr{uintptr(theirs), uintptr(theirs), uintptr(theirs)}
	if err := unix.SetNonblock(theirs, false); err != nil {
		return err
	}
	_ = unix.Fchown(theirs, int(order.User.UID), int(order.User.GID))
	return pty.Setsize(master, &pty.Winsize{Rows: uint16(order.TTY.Rows), Cols: uint16(order.TTY.Cols)})
}

const (
	readEnd = iota
	writeEnd
)

// pipe makes one whose `end` goes through the poller, while the other one blocks, as programs expect.
func pipe(end int) (ours *os.File, theirs int, err error) {
	var both [2]int
	if err := unix.Pipe2(both[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, 0, fmt.Errorf("make a pipe: %w", err)
	}
	ours, theirs = os.NewFile(uintptr(both[end]), "pipe"), both[1-end]
	if _, err := unix.FcntlInt(uintptr(theirs), unix.F_SETFL, 0); err != nil {
		ours.Close()
		unix.Close(theirs)
		return nil, 0, err
	}
	return ours, theirs, nil
}

func (s *Spawner) execute(order Order, ends *ends) (int, *wire.StartError, error) {
	attributes := &syscall.ProcAttr{
		Dir: order.Dir, Env: order.Env, Files: ends.files,
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: order.TTY != nil},
	}
	if s.privilege {
		attributes.Sys.Credential = &syscall.Credential{Uid: order.User.UID, Gid: order.User.GID, Groups: order.User.Groups}
	}
	candidates, startError := candidates(order)
	if startError != nil {
		return 0, startError, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// The thread itself becomes a member of the tree while it forks, so that there is no moment at which the child, or a
	// child of the child, is outside.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	leave, err := order.Tree.Enter()
	if err != nil {
		return 0, nil, err
	}
	defer leave()
	var failed error
	for _, path := range candidates {
		pid, err := syscall.ForkExec(path, order.Argv, attributes)
		if err == nil {
			return pid, nil, nil
		}
		failed = err
		if !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.ENOENT) {
			break
		}
	}
	return explain(order, failed)
}

// candidates lists the files a name may mean, in the order of the search path. Whether the user may execute them is the
// kernel's to say.
func candidates(order Order) ([]string, *wire.StartError) {
	name := order.Argv[0]
	if strings.Contains(name, "/") {
		return []string{name}, nil
	}
	var found []string
	for _, dir := range filepath.SplitList(order.Search) {
		if dir == "" {
			dir = "."
		}
		path := dir + "/" + name
		from := path
		if !strings.HasPrefix(path, "/") {
			from = order.Dir + "/" + path
		}
		var status unix.Stat_t
		if name != "" && unix.Stat(from, &status) == nil && status.Mode&unix.S_IFMT == unix.S_IFREG {
			found = append(found, path)
		}
	}
	if len(found) == 0 {
		return nil, &wire.StartError{Code: "command_not_found", Message: fmt.Sprintf("%q is not on the search path", name)}
	}
	return found, nil
}

func explain(order Order, failed error) (int, *wire.StartError, error) {
	message := fmt.Sprintf("%s: %v", order.Argv[0], failed)
	switch {
	case errors.Is(failed, unix.E2BIG):
		return 0, nil, wire.Fail("argument_too_long", "the arguments and the environment are too long together").With("limit_bytes", 2<<20)
	case errors.Is(failed, unix.EAGAIN), errors.Is(failed, unix.ENOMEM):
		return 0, &wire.StartError{Code: "io_error", Message: "no more processes or memory: " + message}, nil
	case errors.Is(failed, fs.ErrNotExist), errors.Is(failed, unix.ENOTDIR):
		return 0, &wire.StartError{Code: "command_not_found", Message: message}, nil
	case errors.Is(failed, fs.ErrPermission), errors.Is(failed, unix.EISDIR):
		return 0, &wire.StartError{Code: "permission_denied", Message: message}, nil
	case errors.Is(failed, unix.ENOEXEC), errors.Is(failed, unix.EINVAL), errors.Is(failed, unix.ELIBBAD):
		return 0, &wire.StartError{Code: "exec_format", Message: message}, nil
	}
	return 0, &wire.StartError{Code: "io_error", Message: message}, nil
}
