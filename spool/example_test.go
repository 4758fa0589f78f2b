package spool_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/bedside-gateway/gatewayd/spool"
)

func Example() {
	dir, err := os.MkdirTemp("", "spool")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	s, err := spool.Open(filepath.Join(dir, "spool.db"), spool.Options{Key: [32]byte{1, 2, 3}})
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()
	ctx := context.Background()
	if _, err := s.Enqueue(ctx, spool.Entry{Queue: "platform", Device: "bed-1", ControlID: "A1", Payload: []byte("MSH|...")}); err != nil {
		log.Fatal(err) // not ours: the caller still has it
	}
	// From here on it survives a power cut.
	q := s.Queue("platform")
	e, err := q.Next(ctx)
	if err != nil {
		log.Fatal(err)
	}
	if err := q.Sent(e.ID); err != nil {
		log.Fatal(err) // dropped meanwhile: do not send it
	}
	fmt.Printf("%s is %v\n", e.ControlID, e.State)
	// ... send it, and read the acknowledgement ...
	if err := q.Accepted(e.ID); err != nil {
		log.Fatal(err)
	}
	fmt.Println(s.Stats().Messages, "left")
	// Output:
	// A1 is queued
	// 0 left
}
