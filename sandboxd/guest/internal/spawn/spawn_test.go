package spawn

import (
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"sandlot.dev/guest/internal/identity"
	"sandlot.dev/guest/internal/tree"
	"sandlot.dev/guest/internal/wire"
)

func order(argv ...string) Order {
	grown, _ := tree.Sessions{}.New()
	user := identity.User{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
	return Order{Argv: argv, Env: []string{"PATH=/usr/bin:/bin"}, Search: "/usr/bin:/bin", Dir: "/", User: user, Tree: grown}
}

func spawner(t *testing.T) *Spawner {
	t.Helper()
	made, err := NewSpawner()
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func wait(t *testing.T, child *Child) {
	t.Helper()
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(child.PID, &status, 0, nil); err != nil || status.ExitStatus() != 0 {
		t.Fatal(err, status)
	}
}

const flagsOfThree = `for i in 0 1 2; do while read name value; do [ $name = flags: ] && echo $value; done < /proc/self/fdinfo/$i; done; true`

func TestProgramsSeeBlockingFiles(t *testing.T) {
	for name, change := range map[string]func(*Order){
		"pipes":    func(o *Order) { o.Stdin = true },
		"merged":   func(o *Order) { o.MergeStderr = true },
		"terminal": func(o *Order) { o.TTY = &wire.Size{Rows: 5, Cols: 50} },
	} {
		given := order("sh", "-c", flagsOfThree)
		change(&given)
		child, startError, err := spawner(t).Start(given)
		if startError != nil || err != nil {
			t.Fatal(name, startError, err)
		}
		from := child.Stdout
		if child.Terminal != nil {
			from = child.Terminal
		}
		text, err := io.ReadAll(from)
		if err != nil && !errors.Is(err, unix.EIO) {
			t.Fatal(name, err)
		}
		wait(t, child)
		flags := strings.Fields(string(text))
		if len(flags) != 3 {
			t.Fatal(name, flags)
		}
		for _, one := range flags {
			if value, err := strconv.ParseUint(one, 8, 32); err != nil || value&unix.O_NONBLOCK != 0 {
				t.Errorf("%s: %s", name, flags)
			}
		}
	}
}

func TestWhyAProgramWasNotStarted(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"plain": 0o644, "noformat": 0o755, "nointerpreter": 0o755} {
		text := map[string]string{"nointerpreter": "#!/no/such/interpreter\n"}[name]
		if err := os.WriteFile(dir+"/"+name, []byte(text+"x"), mode); err != nil {
			t.Fatal(err)
		}
	}
	for command, code := range map[string]string{
		"no-such-command":      "command_not_found",
		"/no/such":             "command_not_found",
		"/dev/null/x":          "command_not_found",
		dir:                    "permission_denied",
		dir + "/plain":         "permission_denied",
		dir + "/noformat":      "exec_format",
		dir + "/nointerpreter": "command_not_found",
	} {
		child, startError, err := spawner(t).Start(order(command))
		if child != nil || err != nil || startError == nil || startError.Code != code {
			t.Errorf("%s: %v %v", command, startError, err)
		}
	}
	var problem *wire.Problem
	long := strings.Repeat("x", 131_000)
	_, _, err := spawner(t).Start(order(append([]string{"true"}, strings.Split(strings.Repeat(long+" ", 60), " ")...)...))
	if !errors.As(err, &problem) || problem.Code != "argument_too_long" {
		t.Error(err)
	}
}

func TestNothingIsLeftOpen(t *testing.T) {
	made := spawner(t)
	open := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	_, _, _ = made.Start(order("no-such-command"))
	before := open()
	for range 20 {
		_, _, _ = made.Start(order("/no/such"))
	}
	if after := open(); after > before {
		t.Fatalf("%d descriptors, then %d", before, after)
	}
}
