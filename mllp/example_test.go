package mllp_test

import (
	"fmt"
	"strings"

	"github.com/bedside-gateway/gatewayd/mllp"
)

func ExampleReader() {
	block, err := mllp.AppendBlock(nil, []byte("MSH|^~\\&|..."))
	if err != nil {
		fmt.Println(err)
	}
	r := mllp.NewReader(strings.NewReader("\r\n"+string(block)), 64<<10)
	message, err := r.ReadBlock()
	fmt.Printf("%s %v, %d bytes skipped\n", message, err, r.Skipped())
	// Output: MSH|^~\&|... <nil>, 2 bytes skipped
}

func ExampleCheck() {
	fmt.Println(mllp.Check([]byte("MSH|\rNTE|1||a\x1cb\r")))
	// Output: message holds the MLLP frame byte 0x1C at position 13, in segment 2: write it as the escape \X1C\ or leave it out
}
