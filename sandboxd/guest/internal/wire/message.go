package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"time"
)

// Health is the answer of GET /v1/health.
type Health struct {
	Version          string  `json:"version"`
	Protocol         int     `json:"protocol"`
	Initialized      bool    `json:"initialized"`
	ProcessesRunning int     `json:"processes_running"`
	LastExitAtUS     int64   `json:"last_exit_at_us"`
	UptimeSeconds    float64 `json:"uptime_seconds"`
}

// Init tells the guest who it is. Env may hold secrets, SecretEnv does.
type Init struct {
	Hostname        string            `json:"hostname"`
	Env             map[string]string `json:"env"`
	SecretEnv       map[string]string `json:"secret_env"`
	ImageEnv        map[string]string `json:"image_env"`
	User            *string           `json:"user"`
	Cwd             *string           `json:"cwd"`
	ImageUser       *string           `json:"image_user"`
	ImageCwd        *string           `json:"image_cwd"`
	Address         string            `json:"address"`
	Gateway         string            `json:"gateway"`
	Resolvers       []string          `json:"resolvers"`
	MaxProcesses    int               `json:"max_processes"`
	MemoryBytes     int64             `json:"memory_bytes"`
	CPUs            float64           `json:"cpus"`
	NowUS           int64             `json:"now_us"`
	SeedBase64      []byte            `json:"seed_base64"`
	TokenSHA256     *string           `json:"token_sha256"`
	BackstopSeconds *float64          `json:"backstop_seconds"`
}

// InitResult says what the guest made of an Init.
type InitResult struct {
	User             string  `json:"user"`
	UID              uint32  `json:"uid"`
	GID              uint32  `json:"gid"`
	Home             string  `json:"home"`
	Cwd              string  `json:"cwd"`
	Shell            *string `json:"shell"`
	Version          string  `json:"version"`
	BootID           string  `json:"boot_id"`
	ClockSkewSeconds float64 `json:"clock_skew_seconds"`
}

// Backstop moves the guest's own end.
type Backstop struct {
	Seconds *float64 `json:"seconds"`
}

// Size of a terminal.
type Size struct {
	Rows int `json:"rows"`
	Cols int `json:"cols"`
}

// OutputPolicy says what happens to output nobody has read yet.
type OutputPolicy struct {
	Mode       string `json:"mode"`
	RingBytes  int    `json:"ring_bytes"`
	LimitBytes *int64 `json:"limit_bytes"`
}

// Spec is a GuestProcessSpec.
type Spec struct {
	ID               string            `json:"id"`
	Argv             []string          `json:"argv"`
	Shell            *string           `json:"shell"`
	Env              map[string]string `json:"env"`
	WithSecrets      *bool             `json:"with_secrets,omitempty"`
	Cwd              *string           `json:"cwd"`
	User             *string           `json:"user"`
	TTY              *Size             `json:"tty"`
	Stdin            bool              `json:"stdin"`
	InputBase64      *[]byte           `json:"input_base64"`
	MergeStderr      bool              `json:"merge_stderr"`
	TimeoutSeconds   *float64          `json:"timeout_seconds"`
	KillGraceSeconds *float64          `json:"kill_grace_seconds"`
	Output           OutputPolicy      `json:"output"`
	Tag              *string           `json:"tag"`
}

// StartError says why a process was never started.
type StartError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Exit is the payload of the exit frame.
type Exit struct {
	ExitCode        int         `json:"exit_code"`
	Signal          *string     `json:"signal"`
	Reason          string      `json:"reason"`
	Message         *string     `json:"message"`
	StartError      *StartError `json:"start_error"`
	DurationSeconds float64     `json:"duration_seconds"`
}

// Process is one command, as the node sees it.
type Process struct {
	ID              string      `json:"id"`
	Argv            []string    `json:"argv"`
	Cwd             string      `json:"cwd"`
	User            string      `json:"user"`
	UID             uint32      `json:"uid"`
	GID             uint32      `json:"gid"`
	TTY             *Size       `json:"tty"`
	Tag             *string     `json:"tag"`
	PID             int         `json:"pid"`
	State           string      `json:"state"`
	ExitCode        *int        `json:"exit_code"`
	Signal          *string     `json:"signal"`
	Reason          *string     `json:"reason"`
	Message         *string     `json:"message"`
	StartError      *StartError `json:"start_error"`
	TimeoutSeconds  *float64    `json:"timeout_seconds"`
	StartedAt       string      `json:"started_at"`
	EndedAt         *string     `json:"ended_at"`
	DurationSeconds float64     `json:"duration_seconds"`
	CPUUsedSeconds  float64     `json:"cpu_used_seconds"`
	PeakMemoryBytes int64       `json:"peak_memory_bytes"`
	FirstSeq        uint64      `json:"first_seq"`
	NextSeq         uint64      `json:"next_seq"`
	StdoutBytes     uint64      `json:"stdout_bytes"`
	StderrBytes     uint64      `json:"stderr_bytes"`
	StdinOffset     int64       `json:"stdin_offset"`
	StdinClosed     bool        `json:"stdin_closed"`
}

// Attached is the first frame of an attachment: the process, and where the output that follows begins.
type Attached struct {
	Process
	After uint64 `json:"after"`
}

// ProcessList is the answer of GET /v1/processes.
type ProcessList struct {
	Items []Process `json:"items"`
}

// StdinResult says how far standard input was written.
type StdinResult struct {
	Offset int64 `json:"offset"`
	Closed bool  `json:"closed"`
}

// Signal asks for a signal.
type Signal struct {
	Signal string `json:"signal"`
	Scope  string `json:"scope"`
}

// Shutdown asks for the end of every user process.
type Shutdown struct {
	GraceSeconds float64 `json:"grace_seconds"`
}

// Port is one listening socket.
type Port struct {
	Port     int    `json:"port"`
	Protocol string `json:"protocol"`
	Address  string `json:"address"`
	PID      *int   `json:"pid"`
}

// Feed asks for the newest output of all processes.
type Feed struct {
	Positions        map[string]uint64 `json:"positions"`
	Ended            []string          `json:"ended"`
	MostBytes        int               `json:"most_bytes"`
	IntervalSeconds  float64           `json:"interval_seconds"`
	LingerSeconds    float64           `json:"linger_seconds"`
	KeepaliveSeconds float64           `json:"keepalive_seconds"`
	Follow           bool              `json:"follow"`
}

// PortList is the answer of GET /v1/ports.
type PortList struct {
	Items []Port `json:"items"`
}

// Metrics is the guest's own view of its use: hints.
type Metrics struct {
	CPUUsedSeconds  float64 `json:"cpu_used_seconds"`
	MemoryUsedBytes int64   `json:"memory_used_bytes"`
	Processes       int     `json:"processes"`
	DiskUsedBytes   int64   `json:"disk_used_bytes"`
	DiskLimitBytes  int64   `json:"disk_limit_bytes"`
	Ports           []Port  `json:"ports"`
}

// Stamp renders a time as the protocol writes it.
func Stamp(at time.Time) string { return at.UTC().Format("2006-01-02T15:04:05.000Z") }

// Decode reads one JSON object strictly: an unknown field is an error.
func Decode(data []byte, into any) *Problem {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(into)
	if err == nil && decoder.More() {
		err = errors.New("something follows the object")
	}
	if syntax := (*json.SyntaxError)(nil); errors.As(err, &syntax) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return Fail("malformed_request", "the body is not JSON: %v", err)
	}
	if err != nil {
		return Fail("invalid_request", "%v", err)
	}
	return nil
}
