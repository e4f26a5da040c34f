package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"
)

const (
	// An address of each family: two questions that a resolver asks at once, two small answers.
	small = "small.lab.test"
	// More addresses than a datagram holds: the question is asked again over TCP.
	large = "large.lab.test"
	// Fewer addresses are those of a truncated answer.
	enough = 48
)

// resolve is what tests/src/bin/resolve.rs is, with Go's own resolver: `resolve-go PACE STOP COUNT`.
func resolve() int {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: resolve-go PACE STOP COUNT")
		return 2
	}
	pace, err := strconv.Atoi(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	seen := map[string]bool{}
	for made := 1; ; made++ {
		if _, err := os.Stat(os.Args[2]); err == nil {
			break
		}
		if message := lookUp(made%4 == 0, seen); message != "" {
			fmt.Println("failed", made-1, message)
		}
		// In one go: who counts must not read half of it.
		fresh := os.Args[3] + ".new"
		if err := os.WriteFile(fresh, []byte(strconv.Itoa(made)), 0o600); err == nil {
			err = os.Rename(fresh, os.Args[3])
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		time.Sleep(time.Duration(pace) * time.Millisecond)
	}
	for address := range seen {
		fmt.Println("seen", address)
	}
	return 0
}

// lookUp returns what is wrong, or nothing.
func lookUp(many bool, seen map[string]bool) string {
	resolver := net.Resolver{PreferGo: true}
	name := small
	if many {
		name = large
	}
	addresses, err := resolver.LookupNetIP(context.Background(), "ip", name)
	if err != nil {
		return fmt.Sprintf("%s: %v", name, err)
	}
	if many {
		if len(addresses) < enough {
			return fmt.Sprintf("%s: %d addresses", name, len(addresses))
		}
		return ""
	}
	var v4, v6 bool
	for _, address := range addresses {
		address = address.Unmap()
		v4, v6 = v4 || address.Is4(), v6 || address.Is6()
		seen[address.String()] = true
	}
	if !v4 || !v6 {
		return fmt.Sprintf("%s: half an answer: %v", name, addresses)
	}
	return ""
}
