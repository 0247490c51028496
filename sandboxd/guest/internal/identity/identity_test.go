package identity

import (
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

func etc(t *testing.T, passwd, group string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"passwd": passwd, "group": group} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestFind(t *testing.T) {
	users := NewDirectory(etc(t,
		"root:x:0:0:root:/root:/bin/bash\nuser:x:1000:1001::/home/user:\n",
		"wheel:x:10:user,root\nuser:x:1001:\n",
	))
	for text, want := range map[string]User{
		"root":      {"root", 0, 0, []uint32{0, 10}, "/root", "/bin/bash"},
		"user":      {"user", 1000, 1001, []uint32{1001, 10}, "/home/user", "/bin/sh"},
		"1000":      {"user", 1000, 1001, []uint32{1001, 10}, "/home/user", "/bin/sh"},
		"user:0":    {"user", 1000, 0, []uint32{0}, "/home/user", "/bin/sh"},
		"0:wheel":   {"root", 0, 10, []uint32{10}, "/root", "/bin/bash"},
		"4242":      {"4242", 4242, 0, []uint32{0}, "/", "/bin/sh"},
		"4242:4343": {"4242", 4242, 4343, []uint32{4343}, "/", "/bin/sh"},
	} {
		user, problem := users.Find(text)
		if problem != nil || user.Name != want.Name || user.UID != want.UID || user.GID != want.GID ||
			user.Home != want.Home || user.Shell != want.Shell || !slices.Equal(user.Groups, want.Groups) {
			t.Errorf("%s: %+v %v", text, user, problem)
		}
	}
}

func TestNobody(t *testing.T) {
	users := NewDirectory(etc(t, "root:x:0:0:root:/root:/bin/bash\n", ""))
	// 2^32-1 means "no change" to the kernel: it would leave the process root.
	for _, text := range []string{"", "nobody", "-1", "4294967295", "4294967296", "1.5", "0:4294967295", "0:none", "0:"} {
		if user, problem := users.Find(text); problem == nil || problem.Code != "user_not_found" {
			t.Errorf("%q: %+v %v", text, user, problem)
		}
	}
}

func TestHostileFiles(t *testing.T) {
	dir := etc(t, "\x00\n:::::::\nbad:x:minus:0::/:\nbad:x:-1:0::/:\nroot:x:0:0::/root:/bin/sh", "g:x:99999999999:root\n")
	users := NewDirectory(dir)
	if user, problem := users.Find("root"); problem != nil || user.Home != "/root" {
		t.Fatalf("%+v %v", user, problem)
	}
	if _, problem := users.Find("bad"); problem == nil {
		t.Fatal("a line that is none was taken")
	}
	if err := os.Remove(filepath.Join(dir, "passwd")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "passwd"), 0o644); err != nil {
		t.Fatal(err)
	}
	if user, problem := users.Find("0"); problem != nil || user.Home != "/" {
		t.Fatalf("a pipe holds it up: %+v %v", user, problem)
	}
}

func TestAChangedFileIsReadAgain(t *testing.T) {
	dir := etc(t, "", "")
	users := NewDirectory(dir)
	if _, problem := users.Find("late"); problem == nil {
		t.Fatal("found")
	}
	if err := os.WriteFile(filepath.Join(dir, "passwd"), []byte("late:x:7:7::/:/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if user, problem := users.Find("late"); problem != nil || user.UID != 7 {
		t.Fatalf("%+v %v", user, problem)
	}
}
