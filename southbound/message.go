package southbound

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/bedside-gateway/gatewayd/hl7"
	"github.com/bedside-gateway/gatewayd/mllp"
	"github.com/bedside-gateway/gatewayd/pcd"
)

// messagesUntilEnd takes messages one after the other, and says why it ended.
func (c *conn) messagesUntilEnd(ctx context.Context) error {
	in := mllp.NewConn(patient{c.tls, c}, c.s.o.MaxMessage)
	defer func() { c.s.book.skip(c, in.Reader().Skipped()) }()
	for {
		if err := c.await(in); err != nil {
			return err
		}
		message, err := in.ReadBlock(time.Now().Add(c.s.o.MessageTimeout))
		switch {
		case isTimeout(err):
			return fmt.Errorf("a message was not complete within %v", c.s.o.MessageTimeout)
		case err != nil:
			return err
		}
		if err := c.exchange(ctx, in, message); err != nil {
			return err
		}
	}
}

// exchange takes one message. Its error ends the connection.
func (c *conn) exchange(ctx context.Context, in *mllp.Conn, message []byte) error {
	if c.s.o.Answer == nil {
		return c.message(ctx, in, message)
	}
	wire, err := c.s.o.Answer(ctx, Message{Device: c.device, Remote: c.remote, Bytes: message})
	if err != nil || len(wire) == 0 {
		return err
	}
	if err := c.tls.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
		return err
	}
	_, err = c.tls.Write(wire)
	return err
}

// An outcome is what becomes of a message.
type outcome struct {
	verdict byte // A, E or R, the second letter of the acknowledgement
	code    string
	reason  string // without anything of the message
}

// message takes one message and answers it by the rules. Its error ends the connection.
func (c *conn) message(ctx context.Context, in *mllp.Conn, message []byte) error {
	header, err := headerOf(message)
	if err != nil {
		// Nothing could be matched with an answer: the device sees the
		// connection close, and must take that as not delivered.
		c.s.book.message(c, 'R', len(message), c.s.o.Now())
		return fmt.Errorf("a message of %d bytes cannot be answered: %w", len(message), err)
	}
	o := c.take(ctx, message)
	c.s.book.message(c, o.verdict, len(message), c.s.o.Now())
	if o.verdict != 'A' {
		c.s.o.Log.Warn("southbound: message not taken", "device", c.device, "bytes", len(message), "answer", string(o.verdict), "reason", o.reason)
	}
	return c.answer(in, header, o)
}

// take hands a message to the sink, if it can be one.
func (c *conn) take(ctx context.Context, message []byte) outcome {
	if err := mllp.Check(message); err != nil { // it could not be sent on
		return outcome{'R', "102", err.Error()}
	}
	var m hl7.Message
	if err := m.Parse(message, hl7.Limits{Bytes: c.s.o.MaxMessage}); err != nil {
		return outcome{'R', "100", "it cannot be parsed: " + err.Error()}
	}
	if m.At(1).Field(9).Empty() {
		return outcome{'R', "101", "it has no message type (MSH-9)"}
	}
	ctx, cancel := context.WithTimeout(ctx, c.s.o.SinkTimeout)
	defer cancel()
	err := c.s.o.Sink(ctx, c.device, message)
	if err == nil {
		return outcome{verdict: 'A'}
	}
	if r, ok := errors.AsType[*RejectError](err); ok {
		code := r.Code
		if code == "" {
			code = "207"
		}
		return outcome{'R', code, r.Reason}
	}
	return outcome{'E', "207", err.Error()}
}

// headerOf is the first segment, if it can be answered.
func headerOf(message []byte) ([]byte, error) {
	header := message
	if i := bytes.IndexAny(message, "\r\n"); i >= 0 {
		header = message[:i]
	}
	_, err := pcd.ControlID(header)
	return header, err
}

// answer acknowledges as the device asked for. Where it wants no answer but
// the message was not taken, the end of the connection has to tell it.
func (c *conn) answer(in *mllp.Conn, header []byte, o outcome) error {
	code, err := codeFor(header, o.verdict)
	switch {
	case err != nil:
		return err
	case code == "" && o.verdict == 'A':
		return nil
	case code == "":
		return errors.New("a message was not taken, and the device wants no answer: " + o.reason)
	}
	options := pcd.AckOptions{ControlID: string(c.s.ids.Append(nil)), Now: c.s.o.Now()}
	if o.verdict != 'A' {
		options.Errors = []pcd.AckError{{Code: o.code, Severity: "E"}}
		if o.verdict == 'R' { // what is wrong with the message; our own troubles are ours
			options.Errors[0].User = o.reason
		}
	}
	ack, err := pcd.AppendAck(nil, header, code, options)
	if err != nil {
		return fmt.Errorf("a message cannot be answered: %w", err)
	}
	return in.WriteBlock(ack, time.Now().Add(writeTime))
}

// codeFor is the acknowledgement that a message asks for.
func codeFor(header []byte, verdict byte) (string, error) {
	var m hl7.Message
	if err := m.Parse(header, hl7.Limits{}); err != nil {
		return "", err
	}
	return pcd.AckCode(m.At(1).Field(15).String(), m.At(1).Field(16).String(), verdict), nil
}
