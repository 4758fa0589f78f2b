package northbound

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"time"

	"github.com/bedside-gateway/gatewayd/pcd"
	"github.com/bedside-gateway/gatewayd/spool"
)

type Reject uint8

const (
	Continue Reject = iota
	Halt
)

type Destination struct {
	Name, Address, Connect                          string
	TLS                                             *tls.Config
	ConnectTimeout, AckTimeout, IdleTimeout, Pacing time.Duration
	MaxAckBytes, RejectTries, ErrorTries            int
	StrictAck                                       bool
	OnReject                                        Reject
}

type (
	UnreachableError struct {
		Reason, Next string
		Err          error
	}
	RefusedError struct {
		Reason, Next string
		Err          error
	}
	AckError struct {
		Reason, Next string
		Err          error
	}
)

func (e *UnreachableError) Error() string { return e.Reason }
func (e *RefusedError) Error() string     { return e.Reason }
func (e *AckError) Error() string         { return e.Reason }

type Conn struct{}

func Dial(ctx context.Context, d Destination) (*Conn, error) { return nil, errors.New("not yet") }
func (c *Conn) Exchange(ctx context.Context, msg []byte) (pcd.Ack, error) {
	return pcd.Ack{}, errors.New("not yet")
}
func (c *Conn) Close() error { return nil }

type Queue interface {
	Next(context.Context) (spool.Entry, error)
	Sent(id uint64) error
	Accepted(id uint64) error
	Retry(id uint64, reason string) error
	Quarantine(id uint64, reason string) error
}

type Options struct {
	Log  *slog.Logger
	Now  func() time.Time
	Rand func() float64
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

type Client struct{}

func NewClient(d Destination, q Queue, o Options) *Client { return &Client{} }
func (c *Client) Run(ctx context.Context) error           { return errors.New("not yet") }
func (c *Client) Status() Status                          { return Status{} }

type Histogram struct {
	Bounds []float64
	Counts []uint64
	Sum    float64
}

type Status struct {
	State            string
	Since            time.Time
	Connected        bool
	Attempts         uint64
	Fault            string
	LastAck          time.Time
	Acks, Handshakes map[string]uint64
	RoundTrips       Histogram
}
