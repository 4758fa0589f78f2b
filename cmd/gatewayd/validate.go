package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/bedside-gateway/gatewayd/internal/hl7file"
	"github.com/bedside-gateway/gatewayd/pcd"
)

func (a *app) validateCommand() *cobra.Command {
	return &cobra.Command{
		Use: "validate FILE...", Short: "Say what messages break of the rules of IHE PCD-01", Args: some("FILE"),
		Long: "Read HL7 messages, any number in a file, and print what they break of the rules of IHE PCD-01.\n" +
			"FILE - is the standard input. The exit code is 65 when there is an error; warnings alone give 0.",
		RunE: func(_ *cobra.Command, args []string) error { return a.validate(args) },
	}
}

func (a *app) validate(names []string) error {
	wrong, messages := 0, 0
	for _, name := range names {
		list, err := a.messages(name)
		if err != nil {
			return err
		}
		for i, m := range list {
			messages++
			wrong += printFindings(a.out, fmt.Sprintf("%s: message %d", name, i+1), pcd.Validate(m))
		}
	}
	if wrong > 0 {
		return &exit{exitData, fmt.Errorf("%s in %s", count(wrong, "error"), count(messages, "message"))}
	}
	fmt.Fprintln(a.err, count(messages, "message"), "without error")
	return nil
}

// messages reads the messages of a file.
func (a *app) messages(name string) ([][]byte, error) {
	f, err := a.open(name)
	if err != nil {
		return nil, coded(err)
	}
	defer f.Close()
	list, err := hl7file.Read(f)
	if err != nil {
		return nil, &exit{exitData, fmt.Errorf("%s %w", name, err)}
	}
	return list, nil
}
