// Package config reads the one configuration file of the gateway, in TOML, and
// reads it strictly: an unknown key, a value of the wrong kind or a name that
// points nowhere is an error with its line and column, the key, what is wrong
// and what to write instead. All problems of a file come out of one run.
//
// One table, keys, holds every key with its kind, default and meaning. The
// reader, "gatewayd check --explain" and doc/configuration.md all use it, so
// that they cannot disagree.
//
// The package never holds a secret: keys and certificates are named by file and
// only looked at. It opens no port and no connection. The daemon calls it at
// start and at reload, the command line for check.
package config

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers"
	"github.com/bedside-gateway/gatewayd/drivers/port"
	"github.com/bedside-gateway/gatewayd/keystore"
	"github.com/bedside-gateway/gatewayd/mdc"
	"github.com/bedside-gateway/gatewayd/observation"
)

// DefaultPath is where the file is when nothing else is said.
const DefaultPath = "/etc/gatewayd/gatewayd.toml"

// MaxSize is the size in bytes above which a file is refused unread.
const MaxSize = 1 << 20

// Version is the version of the format that this package reads.
const Version = 1

// A Config is a configuration without problems. File names in it are absolute
// or relative to the working directory, no longer to the configuration file.
type Config struct {
	Path         string // the file it came from
	Version      int64
	Gateway      Gateway
	Identity     Identity
	Spool        Spool
	Destinations []Destination
	Ports        []Port
	Southbound   *Southbound // nil: nothing listens
	Tunnels      []Tunnel
	// MaxDescriptors is how many the process may have; 0: not known.
	MaxDescriptors int
	// Warnings are worth an operator's attention, and no reason to refuse the file.
	Warnings []Problem
}

// Gateway is what the gateway is called and where it keeps its things.
type Gateway struct {
	Name         string            // MSH-3.1
	EUI64        observation.EUI64 // MSH-3.2
	Facility     string            // MSH-4.1
	StateDir     string
	StatusSocket string
	LogLevel     slog.Level
	Zone         *time.Location // of the times in messages
}

// Identity is the certificate that the gateway shows to platforms, and where
// its key is: in the TPM, unless InsecureFileKey.
type Identity struct {
	TPM             string // as package tpm takes it
	KeyType         string // a tpm.Kind
	PolicySigner    string // PEM file; empty: keys are bound to no state of the platform
	PolicyApprovals string // JSON file
	ESTURL          string // empty: certificates are not renewed by themselves
	ESTTrust        string // PEM file of trust anchors

	Certificate     string // PEM file: its own certificate first, then the issuing ones
	Key             string // PEM file
	InsecureFileKey bool
}

// A ServerIdentity is a certificate that devices see.
type ServerIdentity struct {
	Store           string // name of the store with its key in the TPM; empty: a file
	KeyType         string // a tpm.Kind, of keys that are made for the store
	Name            string // DNS name that certificates are requested for
	Certificate     string
	Key             string
	InsecureFileKey bool
}

// Spool is how much is kept for how long.
type Spool struct {
	MaxBytes int64
	MaxAge   time.Duration
}

// A Destination is a platform and what it gets.
type Destination struct {
	Name               string
	Address            string // host:port; the host is the name that the certificate must have
	Connect            string // host:port to dial instead; empty: Address
	Trust              string // PEM file of trust anchors
	ReceivingApp       string // MSH-5.1
	ReceivingFacility  string // MSH-6.1
	AcceptAck          string // MSH-15
	ApplicationAck     string // MSH-16
	Interval           time.Duration
	Include, Exclude   []mdc.Code
	Waveforms          bool
	Patient            string // device, unknown or omit
	AssigningAuthority string // PID-3.4
	AckTimeout         time.Duration
	ConnectTimeout     time.Duration
	IdleTimeout        time.Duration
	Pacing             time.Duration
	StapleMaxAge       time.Duration // 0: no limit but the responses' own
	OnReject           string        // continue or halt
	StrictAck          bool
}

// A Port is a place where a device is plugged in.
type Port struct {
	Name           string
	Device         string // as written
	Driver         string
	Line           port.Line // zero: those that the driver tries
	ListenOnly     bool
	AllowSimulated bool
	DeviceEUI64    observation.EUI64 // for devices that tell none
	DeviceZone     *time.Location    // what the clock of the device shows; nil: the gateway's
	Record         string            // file for the raw bytes; empty: none
	Location       Location
	Options        map[string]string
}

// Southbound is the server for devices that speak IHE PCD themselves (Interface A).
type Southbound struct {
	Listen       string // host:port; no host: all addresses
	Identities   []ServerIdentity
	Trust        string   // PEM file of trust anchors
	CRLs         []string // files that hold what CRLs takes
	Authorised   []string // as AuthorisedName gives them
	Destinations []string // names; empty: all
	LeafOnly13   bool
	MinTLS       string // 1.2 or 1.3

	MaxConnections, MaxPerDevice int64
	MaxMessage                   int64 // bytes
	HandshakeTimeout             time.Duration
	IdleTimeout                  time.Duration
	MessageTimeout               time.Duration
}

// Queues are the destinations that the messages of devices go to.
func (s *Southbound) Queues(all []Destination) []string {
	if len(s.Destinations) > 0 {
		return s.Destinations
	}
	names := make([]string, len(all))
	for i, d := range all {
		names[i] = d.Name
	}
	return names
}

// AuthorisedName is the name of a device as Southbound.Authorised has it: an
// EUI-64 may be written in several ways, other names in one.
func AuthorisedName(commonName string) string {
	if id, err := observation.ParseEUI64(commonName); err == nil {
		return id.String()
	}
	return commonName
}

// Location is where the device stands, PV1-3.
type Location struct{ PointOfCare, Room, Bed, Facility string }

// Options are what Load needs beside the file.
type Options struct {
	// Drivers are those that a port may name.
	Drivers *drivers.Registry
	// ReadFile reads the files that the configuration names; nil: regular files on the disk.
	ReadFile func(string) ([]byte, error)
	// Identity judges certificate and key file together; nil: not judged.
	Identity func(certificate, key string) error
	// Now is the time that certificates are judged by; zero: not judged.
	Now time.Time
	// Addresses are those of this machine, as far as they are known.
	Addresses []netip.Addr
	// MaxDescriptors is how many a process may have; 0: not judged.
	MaxDescriptors int
}

// Load reads the file and everything that it names. The error is Problems where
// the file has faults, else it says why the file cannot be read.
func Load(path string, o Options) (*Config, error) {
	text, err := readLimited(path)
	if err != nil {
		return nil, err
	}
	return Parse(path, text, o)
}

// Parse is Load for a file whose text is at hand.
func Parse(path string, text []byte, o Options) (*Config, error) {
	if o.ReadFile == nil {
		o.ReadFile = func(name string) ([]byte, error) { return keystore.ReadFile(name, keystore.MaxFile) }
	}
	if o.Drivers == nil {
		o.Drivers = &drivers.Registry{}
	}
	l := &loader{path: path, dir: filepath.Dir(path), options: o}
	root := l.parse(text)
	if root == nil {
		return nil, l.problems
	}
	c := l.config(root)
	if l.failed() {
		return nil, l.sorted(false)
	}
	c.Warnings = l.sorted(true)
	return c, nil
}

func readLimited(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s: there is no such file; name the configuration with -c FILE: %w", path, fs.ErrNotExist)
	case err != nil:
		return nil, fmt.Errorf("%s: the configuration cannot be read: %w", path, err)
	case info.IsDir():
		return nil, fmt.Errorf("%s is a directory; name the file in it", path)
	case info.Size() > MaxSize:
		return nil, fmt.Errorf("%s has %d bytes; a configuration has at most %d: is this the right file?", path, info.Size(), MaxSize)
	}
	text, err := keystore.ReadFile(path, MaxSize)
	if err != nil {
		return nil, fmt.Errorf("%s: the configuration cannot be read: %w", path, err)
	}
	return text, nil
}

// CRLs reads the certificate revocation lists in a file, in PEM or DER, and the
// certificates of their issuers, which a PEM file may hold as well.
func CRLs(text []byte) (lists []*x509.RevocationList, issuers []*x509.Certificate, err error) {
	block, rest := pem.Decode(text)
	if block == nil {
		block, rest = &pem.Block{Type: "X509 CRL", Bytes: text}, nil
	}
	for ; block != nil; block, rest = pem.Decode(rest) {
		switch block.Type {
		case "X509 CRL":
			l, err := x509.ParseRevocationList(block.Bytes)
			if err != nil {
				return nil, nil, errors.New("holds no CRL that can be read; put one there in PEM or DER form, as the CA publishes it")
			}
			lists = append(lists, l)
		case "CERTIFICATE":
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, nil, fmt.Errorf("certificate %d in it cannot be parsed: %w", len(issuers)+1, err)
			}
			issuers = append(issuers, c)
		default:
			return nil, nil, fmt.Errorf("holds a PEM block %.40q; it takes CRLs and the certificates of their issuers", block.Type)
		}
	}
	if len(lists) == 0 {
		return nil, nil, errors.New("holds no CRL; put one there in PEM or DER form, as the CA publishes it")
	}
	return lists, issuers, nil
}

// Roots makes a pool of the trust anchors in PEM text, and the list of them. It
// refuses text without a certificate and certificates that are no CA.
func Roots(text []byte) (*x509.CertPool, []*x509.Certificate, error) {
	pool, list := x509.NewCertPool(), []*x509.Certificate(nil)
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return nil, nil, fmt.Errorf("holds a PEM block %.40q; a trust file holds certificates only", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, nil, fmt.Errorf("certificate %d in it cannot be parsed: %w", len(list)+1, err)
		}
		if !c.IsCA {
			return nil, nil, fmt.Errorf("certificate %d in it, %q, is no CA; put the root of the platform's chain there", len(list)+1, c.Subject.CommonName)
		}
		pool.AddCert(c)
		list = append(list, c)
	}
	if len(list) == 0 {
		return nil, nil, errors.New("holds no PEM certificate; put the root certificates of the platform there")
	}
	return pool, list, nil
}
