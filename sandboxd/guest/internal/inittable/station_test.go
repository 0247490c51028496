package inittable

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"sandlot.dev/guest/internal/identity"
	"sandlot.dev/guest/internal/wire"
)

// world is a home, an image's directory and a passwd file that names the home.
func world(t *testing.T) (home, image string, users *identity.Directory) {
	t.Helper()
	root := t.TempDir()
	home, image = filepath.Join(root, "home"), filepath.Join(root, "image")
	for _, dir := range []string{filepath.Join(home, "sub"), filepath.Join(image, "sub"), filepath.Join(root, "etc")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	line := "user:x:1000:1000::" + home + ":/bin/sh\n"
	if err := os.WriteFile(filepath.Join(root, "etc", "passwd"), []byte(line), 0o644); err != nil {
		t.Fatal(err)
	}
	return home, image, identity.NewDirectory(filepath.Join(root, "etc"))
}

func TestCwd(t *testing.T) {
	home, image, users := world(t)
	none, slash, sub, up := "", "/", "sub", ".."
	user := "user"
	for _, one := range []struct {
		name                        string
		imageCwd, sandboxCwd, asked *string
		want                        string
	}{
		{"home", nil, nil, nil, home},
		{"the image's root counts as none", &slash, nil, nil, home},
		{"image", &image, nil, nil, image},
		{"sandbox", &image, &home, nil, home},
		{"a relative one of the sandbox", &image, &sub, nil, image + "/sub"},
		{"a relative one of the sandbox, from home", nil, &sub, nil, home + "/sub"},
		{"request", &image, &home, &slash, "/"},
		{"a relative one of the request", &image, &home, &sub, home + "/sub"},
		{"out of it", nil, nil, &up, filepath.Dir(home)},
		{"an empty one", nil, nil, &none, home},
	} {
		station, problem := NewStation(wire.Init{User: &user, ImageCwd: one.imageCwd, Cwd: one.sandboxCwd}, users)
		if problem != nil {
			t.Errorf("%s: %v", one.name, problem)
			continue
		}
		if place, problem := station.Place(nil, one.asked); problem != nil || place.Cwd != one.want {
			t.Errorf("%s: %s, not %s (%v)", one.name, place.Cwd, one.want, problem)
		}
	}
}

func TestWhatDoesNotExistIsRefused(t *testing.T) {
	_, _, users := world(t)
	user, nobody, nowhere := "user", "nobody", "/no/such/place"
	if _, problem := NewStation(wire.Init{User: &nobody}, users); problem == nil || problem.Code != "user_not_found" {
		t.Errorf("%v", problem)
	}
	if _, problem := NewStation(wire.Init{User: &user, Cwd: &nowhere}, users); problem == nil || problem.Code != "cwd_not_found" {
		t.Errorf("%v", problem)
	}
	station, _ := NewStation(wire.Init{User: &user}, users)
	if _, problem := station.Place(nil, &nowhere); problem == nil || problem.Code != "cwd_not_found" {
		t.Errorf("%v", problem)
	}
}

func TestLaterEnvironmentsWin(t *testing.T) {
	_, _, users := world(t)
	user := "user"
	station, _ := NewStation(wire.Init{
		User:     &user,
		ImageEnv: map[string]string{"A": "image", "B": "image", "HOME": "/image", "PATH": "/image"},
		Env:      map[string]string{"B": "sandbox", "C": "sandbox"},
	}, users)
	env, search := station.Environment(station.user, Own{Env: map[string]string{"C": "process"}, Terminal: true})
	for _, want := range []string{"A=image", "B=sandbox", "C=process", "USER=user", "TERM=xterm-256color", "LANG=C.UTF-8"} {
		if !slices.Contains(env, want) {
			t.Errorf("no %s in %v", want, env)
		}
	}
	if slices.Contains(env, "HOME=/image") || search != "/image" || !slices.IsSorted(env) {
		t.Errorf("%v, search %s", env, search)
	}
}

func TestSecretsAreForProcessesThatWantThem(t *testing.T) {
	_, _, users := world(t)
	user := "user"
	station, problem := NewStation(wire.Init{
		User: &user, Env: map[string]string{"A": "sandbox"}, SecretEnv: map[string]string{"A": "secret", "B": "secret", "C": "secret"},
	}, users)
	if problem != nil {
		t.Fatal(problem)
	}
	own := map[string]string{"C": "process"}
	for _, one := range []struct {
		with       bool
		yes, never []string
	}{
		{true, []string{"A=secret", "B=secret", "C=process"}, []string{"A=sandbox", "C=secret"}},
		{false, []string{"A=sandbox", "C=process"}, []string{"A=secret", "B=secret", "C=secret"}},
	} {
		env, _ := station.Environment(station.user, Own{Env: own, WithSecrets: one.with})
		for _, want := range one.yes {
			if !slices.Contains(env, want) {
				t.Errorf("with %v: no %s in %v", one.with, want, env)
			}
		}
		for _, unwanted := range one.never {
			if slices.Contains(env, unwanted) {
				t.Errorf("with %v: %s in %v", one.with, unwanted, env)
			}
		}
	}
}
