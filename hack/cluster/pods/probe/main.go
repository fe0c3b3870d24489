// Probe is what pods of tests run: each command does one thing that a cluster allows or refuses, and exits with 0 if it could.
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

const patience = 3 * time.Second

func main() {
	commands := map[string]func([]string) error{
		"dial": dial, "eat": eat, "fill": fill, "get": get, "read": read, "serve": serve, "sleep": sleep, "who": who, "write": write,
	}
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "probe COMMAND ARGUMENT...")
		os.Exit(2)
	}
	if err := commands[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// dial ADDRESS connects by TCP.
func dial(arguments []string) error {
	connection, err := net.DialTimeout("tcp", arguments[0], patience)
	if err == nil {
		connection.Close()
	}
	return err
}

// get URL prints an answer.
func get(arguments []string) error {
	client := http.Client{Timeout: patience}
	answer, err := client.Get(arguments[0])
	if err != nil {
		return err
	}
	_, err = io.Copy(os.Stdout, answer.Body)
	return err
}

// serve ADDRESS TEXT answers every request with a text.
func serve(arguments []string) error {
	answer := func(writer http.ResponseWriter, _ *http.Request) { fmt.Fprintln(writer, arguments[1]) }
	return http.ListenAndServe(arguments[0], http.HandlerFunc(answer))
}

// write FILE TEXT and read FILE: whether a volume keeps what was put on it.
func write(arguments []string) error {
	return os.WriteFile(arguments[0], []byte(arguments[1]), 0o644)
}

func read(arguments []string) error {
	content, err := os.ReadFile(arguments[0])
	fmt.Println(string(content))
	return err
}

// fill FILE MEBIBYTES writes until it has, or until there is no room.
func fill(arguments []string) error {
	file, err := os.Create(arguments[0])
	return grow(arguments[1], func(block []byte) error {
		if err == nil {
			_, err = file.Write(block)
		}
		return err
	})
}

// eat MEBIBYTES takes memory, then waits.
func eat(arguments []string) error {
	var eaten [][]byte
	err := grow(arguments[0], func(block []byte) error {
		eaten = append(eaten, append([]byte(nil), block...))
		return nil
	})
	fmt.Println(len(eaten))
	return err
}

func grow(mebibytes string, take func([]byte) error) error {
	count, err := strconv.Atoi(mebibytes)
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = 1
	}
	for i := 0; i < count && err == nil; i++ {
		err = take(block)
	}
	return err
}

// sleep waits to be stopped, says so, and ends well.
func sleep([]string) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	fmt.Println("waiting")
	<-signals
	fmt.Println("stopped")
	return os.WriteFile("/dev/termination-log", []byte("stopped as asked"), 0o644)
}

// who prints the user and the groups that this runs as.
func who([]string) error {
	groups, err := os.Getgroups()
	fmt.Println(os.Getuid(), groups)
	return err
}
