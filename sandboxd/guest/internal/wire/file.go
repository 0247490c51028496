package wire

// FileInfo describes one file. A path that is not UTF-8 is in PathBase64 instead.
type FileInfo struct {
	Path                *string `json:"path,omitempty"`
	PathBase64          *string `json:"path_base64,omitempty"`
	Name                string  `json:"name"`
	Type                string  `json:"type"`
	SizeBytes           int64   `json:"size_bytes"`
	Mode                string  `json:"mode"`
	UID                 uint32  `json:"uid"`
	GID                 uint32  `json:"gid"`
	Owner               string  `json:"owner"`
	Group               string  `json:"group"`
	ModifiedAt          string  `json:"modified_at"`
	SymlinkTarget       *string `json:"symlink_target,omitempty"`
	SymlinkTargetBase64 *string `json:"symlink_target_base64,omitempty"`
	ETag                string  `json:"etag"`
}

// ListEnd is the last line of a listing: whether there is more behind its limit.
type ListEnd struct {
	More bool `json:"more"`
}

// Extracted counts what came out of an archive.
type Extracted struct {
	Files       int64 `json:"files"`
	Directories int64 `json:"directories"`
	Symlinks    int64 `json:"symlinks"`
	Bytes       int64 `json:"bytes"`
}

// FileEvent is one line of a watch.
type FileEvent struct {
	Kind        string  `json:"kind"`
	Path        *string `json:"path,omitempty"`
	PathBase64  *string `json:"path_base64,omitempty"`
	To          *string `json:"to,omitempty"`
	ToBase64    *string `json:"to_base64,omitempty"`
	IsDirectory *bool   `json:"is_directory,omitempty"`
	At          string  `json:"at,omitempty"`
}
