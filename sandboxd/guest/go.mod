module sandlot.dev/guest

go 1.26

require (
	github.com/creack/pty v1.1.24
	github.com/klauspost/compress v1.18.0
	golang.org/x/sys v0.38.0
)
