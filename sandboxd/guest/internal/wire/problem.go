package wire

import (
	"encoding/json"
	"fmt"
	"maps"
)

var statuses = map[string]int{
	"malformed_request":     400,
	"invalid_path":          400,
	"unauthenticated":       401,
	"permission_denied":     403,
	"process_not_found":     404,
	"file_not_found":        404,
	"route_not_found":       404,
	"method_not_allowed":    405,
	"process_ended":         409,
	"stdin_closed":          409,
	"stdin_gap":             409,
	"is_directory":          409,
	"not_a_directory":       409,
	"already_exists":        409,
	"directory_not_empty":   409,
	"in_use":                409,
	"generation_mismatch":   412,
	"range_not_satisfiable": 416,
	"unsafe_archive":        422,
	"sandbox_not_ready":     409,
	"seq_out_of_range":      416,
	"body_too_large":        413,
	"invalid_request":       422,
	"idempotency_mismatch":  422,
	"argument_too_long":     422,
	"user_not_found":        422,
	"cwd_not_found":         422,
	"no_shell":              422,
	"too_many_streams":      429,
	"internal":              500,
	"port_not_listening":    502,
	"disk_full":             507,
}

// Problem is an expected failure with a stable code.
type Problem struct {
	Code    string
	Message string
	Members map[string]any
}

// Fail makes a problem.
func Fail(code, format string, arguments ...any) *Problem {
	return &Problem{Code: code, Message: fmt.Sprintf(format, arguments...)}
}

// With adds a member that the node reads.
func (p *Problem) With(name string, value any) *Problem {
	if p.Members == nil {
		p.Members = map[string]any{}
	}
	p.Members[name] = value
	return p
}

func (p *Problem) Error() string { return p.Code + ": " + p.Message }

// Status is the HTTP status of the code.
func (p *Problem) Status() int {
	if status, known := statuses[p.Code]; known {
		return status
	}
	return 500
}

// MarshalJSON renders code and message beside the members.
func (p *Problem) MarshalJSON() ([]byte, error) {
	body := map[string]any{"code": p.Code, "message": p.Message}
	maps.Copy(body, p.Members)
	return json.Marshal(body)
}
