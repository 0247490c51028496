module sandlot.dev/guest

go 1.26

require (
	github.com/creack/pty v1.1.24
	golang.org/x/sys v0.38.0
)

require github.com/klauspost/compress v1.18.0
