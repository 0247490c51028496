// A program that needs nothing but the kernel: the whole of an image without a shell.
package main

import (
	"fmt"
	"os"
	"time"
)

func main() {
	where, err := time.LoadLocation("Europe/Berlin")
	name, _ := os.Hostname()
	dir, _ := os.Getwd()
	fmt.Println("hello", os.Getuid(), dir, where, err, name != "")
}
