package process

import (
	"crypto/sha256"
	"encoding/json"
	"regexp"
	"strings"

	"sandlot.dev/guest/internal/wire"
)

const (
	maxArgumentBytes = 131_071
	maxTotalBytes    = 2 << 20
	minRing          = 65_536
	maxRing          = 67_108_864
	defaultRing      = 4 << 20
	defaultGrace     = 2.0
	maxGrace         = 60
	maxTag           = 128
)

var idPattern = regexp.MustCompile(`^prc[a-z2-7]{20}$`)

// fingerprint decides whether a repeated start means the same process.
func fingerprint(spec wire.Spec) [32]byte {
	canonical, _ := json.Marshal(spec)
	return sha256.Sum256(canonical)
}

// check fills in defaults and refuses what the protocol does not allow.
func check(spec *wire.Spec) *wire.Problem {
	if spec.Output.Mode == "" {
		spec.Output.Mode = "ring"
	}
	if spec.Output.RingBytes == 0 {
		spec.Output.RingBytes = defaultRing
	}
	if spec.KillGraceSeconds == nil {
		grace := defaultGrace
		spec.KillGraceSeconds = &grace
	}
	for _, rule := range []struct {
		broken bool
		what   string
	}{
		{!idPattern.MatchString(spec.ID), "id"},
		{(len(spec.Argv) == 0) == (spec.Shell == nil), "exactly one of argv and shell"},
		{len(spec.Argv) > 0 && spec.Argv[0] == "", "argv: the command is empty"},
		{spec.Output.Mode != "ring" && spec.Output.Mode != "block", "output.mode"},
		{spec.Output.RingBytes < minRing || spec.Output.RingBytes > maxRing, "output.ring_bytes"},
		{spec.Output.LimitBytes != nil && *spec.Output.LimitBytes < 1, "output.limit_bytes"},
		{spec.TimeoutSeconds != nil && !(*spec.TimeoutSeconds > 0), "timeout_seconds"},
		{!(*spec.KillGraceSeconds >= 0 && *spec.KillGraceSeconds <= maxGrace), "kill_grace_seconds"},
		{spec.Tag != nil && len(*spec.Tag) > 4*maxTag, "tag"},
		{spec.TTY != nil && !SizeOK(*spec.TTY), "tty"},
		{spec.TTY != nil && spec.InputBase64 != nil, "input_base64 with tty"},
		{spec.Cwd != nil && strings.ContainsRune(*spec.Cwd, 0), "cwd"},
		{spec.Shell != nil && strings.ContainsRune(*spec.Shell, 0), "shell"},
		{!envOK(spec.Env), "env"},
	} {
		if rule.broken {
			return wire.Fail("invalid_request", "not acceptable: %s", rule.what)
		}
	}
	return checkLengths(spec)
}

// SizeOK says whether a terminal may have this size.
func SizeOK(size wire.Size) bool {
	return size.Rows >= 1 && size.Rows <= 1000 && size.Cols >= 1 && size.Cols <= 1000
}

func envOK(env map[string]string) bool {
	for name, value := range env {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(value, 0) {
			return false
		}
	}
	return true
}

func checkLengths(spec *wire.Spec) *wire.Problem {
	arguments := spec.Argv
	if spec.Shell != nil {
		arguments = []string{*spec.Shell}
	}
	total := 0
	for _, argument := range arguments {
		if strings.ContainsRune(argument, 0) {
			return wire.Fail("invalid_request", "not acceptable: argv")
		}
		if len(argument) > maxArgumentBytes {
			return tooLong(maxArgumentBytes)
		}
		total += len(argument) + 1
	}
	variables := 0
	for name, value := range spec.Env {
		if len(name)+1+len(value) > maxArgumentBytes {
			return tooLong(maxArgumentBytes)
		}
		variables += len(name) + len(value) + 2
	}
	if total > maxTotalBytes || variables > maxTotalBytes {
		return tooLong(maxTotalBytes)
	}
	return nil
}

func tooLong(limit int) *wire.Problem {
	return wire.Fail("argument_too_long", "an argument or variable, or all together, is beyond %d bytes", limit).With("limit_bytes", limit)
}
