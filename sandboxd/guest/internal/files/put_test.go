package files

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"sandlot.dev/guest/internal/identity"
)

var self = identity.User{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}

func put(t *testing.T, user identity.User, path string, mode *uint32, parents bool, body io.Reader) string {
	t.Helper()
	upload, problem := Begin(user, path, Wanted{Mode: mode, Parents: parents})
	if problem != nil {
		return problem.Code
	}
	_, bodyErr, problem := upload.Fill(body)
	if bodyErr != nil || problem != nil {
		upload.Abort()
		return "aborted"
	}
	if _, problem := upload.Commit(NewNames(identity.NewDirectory("/etc"))); problem != nil {
		return problem.Code
	}
	return ""
}

func TestPutReplacesWhole(t *testing.T) {
	dir := t.TempDir()
	mode := uint32(0o600)
	for _, row := range []struct {
		name    string
		mode    *uint32
		parents bool
		want    string
	}{
		{"a", nil, false, ""},
		{"a", &mode, false, ""},
		{"a", nil, false, ""},
		{"b/c", nil, false, "file_not_found"},
		{"b/c/d", nil, true, ""},
		{"b/c", nil, true, "is_directory"},
		{"a/b", nil, true, "not_a_directory"},
		{"b/", nil, true, "is_directory"},
		{"b/..", nil, true, "is_directory"},
	} {
		if got := put(t, self, dir+"/"+row.name, row.mode, row.parents, strings.NewReader(row.name)); got != row.want {
			t.Errorf("%s: %q, expected %q", row.name, got, row.want)
		}
	}
	status, err := os.Stat(dir + "/a")
	if err != nil || status.Mode() != 0o600 {
		t.Fatal(status, err)
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("cut") }

func TestABrokenBodyLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	if got := put(t, self, dir+"/a", nil, false, io.MultiReader(strings.NewReader("x"), broken{})); got != "aborted" {
		t.Fatal(got)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Fatal(entries)
	}
}

func TestRightsAreTheUsersAndOnlyForTheMoment(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test must run as root")
	}
	dir := t.TempDir()
	stranger := identity.User{UID: 54321, GID: 54321}
	if got := put(t, stranger, dir+"/a", nil, false, strings.NewReader("x")); got != "permission_denied" {
		t.Fatal(got)
	}
	for range 50 {
		if got := put(t, self, dir+"/b", nil, false, strings.NewReader("x")); got != "" {
			t.Fatal(got)
		}
	}
	if os.Geteuid() != 0 {
		t.Fatal("the program itself changed")
	}
}

func TestPathsNoFileSystemTakes(t *testing.T) {
	for _, path := range []string{"", "a\x00", strings.Repeat("a", 256), "/" + strings.Repeat("a/", 2048) + "x"} {
		if problem := Check(path); problem == nil || problem.Code != "invalid_path" {
			t.Errorf("%.20q: %v", path, problem)
		}
	}
}
