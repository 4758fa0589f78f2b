package config

import "time"

// A key is one key of the file. def is its default as it would be written in
// the file; a key without one is required when required is set, else its value
// is then empty. into is where its value goes in the struct of its section.
type key[T any] struct {
	name     string
	def      any
	required bool
	into     func(*T) kind
	meaning  string
}

// A section is the keys of one struct.
type section[T any] []key[T]

const day = 24 * time.Hour

var rootKeys = section[Config]{
	{"version", int64(Version), false, func(c *Config) kind { return number(&c.Version, 1, Version) },
		"The version of the format of this file. A newer gatewayd reads older versions."},
}

var gatewayKeys = section[Gateway]{
	{"name", nil, true, func(g *Gateway) kind { return text(&g.Name, 20) },
		"The name of this gateway as the sending application, MSH-3.1 of every message."},
	{"eui64", nil, true, func(g *Gateway) kind { return eui64(&g.EUI64) },
		"The EUI-64 of this gateway, MSH-3.2 of every message. The certificate of the gateway has it as its common name."},
	{"facility", "", false, func(g *Gateway) kind { return assigner(&g.Facility) },
		"The sending facility, MSH-4: a name, or name^id^type."},
	{"state_dir", "/var/lib/gatewayd", false, func(g *Gateway) kind { return file(&g.StateDir) },
		"The folder of the spool and its key. Only gatewayd may read it."},
	{"status_socket", "/run/gatewayd/status.sock", false, func(g *Gateway) kind { return socketPath(&g.StatusSocket) },
		"The unix socket that answers gatewayd status, gatewayd spool and the metrics scraper."},
	{"log_level", "info", false, func(g *Gateway) kind { return level(&g.LogLevel) },
		"The least urgent messages that are logged. No level logs patient data."},
	{"timezone", "UTC", false, func(g *Gateway) kind { return zone(&g.Zone) },
		"The time zone of the times in messages. Every time carries its offset, so that UTC is always right."},
}

var identityKeys = section[Identity]{
	{"tpm", "/dev/tpmrm0", false, func(i *Identity) kind { return tpmAddress(&i.TPM) },
		"The TPM 2.0 that holds the private key: a device, or unix:/PATH or tcp:HOST:PORT for an emulator. gatewayd enroll makes the key in it and installs the certificate."},
	{"key_type", "ecc-p256", false, func(i *Identity) kind { return choice(&i.KeyType, "ecc-p256", "ecc-p384", "rsa-2048") },
		"The kind of key that gatewayd enroll makes. Every TPM 2.0 can do ecc-p256."},
	{"policy_signer", "", false, func(i *Identity) kind { return path(&i.PolicySigner) },
		"The PEM file of a public key on P-256. New keys and secrets are then bound to it: the TPM uses them only in states of the platform that its owner approved. Empty: they are bound to no state, so that no update can lock the gateway out."},
	{"policy_approvals", "", false, func(i *Identity) kind { return path(&i.PolicyApprovals) },
		"The JSON file of the states that policy_signer approved. A firmware brings its own."},
	{"est_url", "", false, func(i *Identity) kind { return estURL(&i.ESTURL) },
		"Where the CA renews certificates over EST (RFC 7030): https://HOST[:PORT], with the label of a CA behind it where there is one. Renewal begins at two thirds of a certificate's life. Empty: an operator renews."},
	{"est_trust", "", false, func(i *Identity) kind { return path(&i.ESTTrust) },
		"The PEM file of the root certificates that the EST server's chain must end in."},
	{"certificate", "", false, func(i *Identity) kind { return path(&i.Certificate) },
		"The PEM file of the certificate that platforms see, followed by its issuing certificates. Only with insecure_file_key; otherwise the certificate is where gatewayd enroll puts it."},
	{"key", "", false, func(i *Identity) kind { return path(&i.Key) },
		"The PEM file of the private key. For development only: it needs insecure_file_key = true, and its file must be readable by its owner alone."},
	{"insecure_file_key", false, false, func(i *Identity) kind { return yesNo(&i.InsecureFileKey) },
		"Must be true while the private key is in a file, and says that this is known to be unfit for patients. Status, log and metrics repeat it."},
}

var spoolKeys = section[Spool]{
	{"max_bytes", "64MiB", false, func(s *Spool) kind { return size(&s.MaxBytes, 1<<20, 64<<30) },
		"How much undelivered messages may take on disk. When it is reached, waveforms go first, then the oldest periodic values, then episodic ones, alerts last; what goes is counted and reported."},
	{"max_age", "72h", false, func(s *Spool) kind { return duration(&s.MaxAge, time.Minute, 365*day) },
		"How long an undelivered message is kept."},
}

var destinationKeys = section[Destination]{
	{"name", nil, true, func(d *Destination) kind { return label(&d.Name) },
		"The name of this destination in status, logs and metrics, and of its queue in the spool. A renamed destination has a new, empty queue."},
	{"address", nil, true, func(d *Destination) kind { return address(&d.Address) },
		"host:port of the platform. The certificate of the platform must have this host as its common name or as a DNS name. The port is 2575 if it is left out."},
	{"connect", "", false, func(d *Destination) kind { return optional(address(&d.Connect)) },
		"host:port to dial instead, while the certificate must still have the host of address. Empty: address itself."},
	{"trust", nil, true, func(d *Destination) kind { return file(&d.Trust) },
		"The PEM file of the root certificates that the platform's chain must end in. No other root is trusted."},
	{"receiving_application", "", false, func(d *Destination) kind { return assigner(&d.ReceivingApp) }, "The receiving application, MSH-5: a name, or name^id^type."},
	{"receiving_facility", "", false, func(d *Destination) kind { return assigner(&d.ReceivingFacility) }, "The receiving facility, MSH-6: a name, or name^id^type."},
	{"accept_ack", "AL", false, func(d *Destination) kind { return choice(&d.AcceptAck, "AL", "NE", "ER", "SU") },
		"When the platform sends an accept acknowledgement, MSH-15: AL always, NE never, ER on error, SU on success."},
	{"application_ack", "NE", false, func(d *Destination) kind { return choice(&d.ApplicationAck, "AL", "NE", "ER", "SU") },
		"When the platform sends an application acknowledgement, MSH-16. One of the two acknowledgements must tell success, else delivery stays unknown: NE with NE is refused."},
	{"interval", "60s", false, func(d *Destination) kind { return duration(&d.Interval, 0, day) },
		"How often the values of a device become a message. 0s: every report of the device becomes one at once. Episodic values and alerts never wait."},
	{"include", []any{}, false, func(d *Destination) kind { return codes(&d.Include) },
		"The only terms that are sent, as MDC_ names or numbers. Empty: all."},
	{"exclude", []any{}, false, func(d *Destination) kind { return codes(&d.Exclude) },
		"The terms that are not sent, as MDC_ names or numbers."},
	{"waveforms", false, false, func(d *Destination) kind { return yesNo(&d.Waveforms) },
		"Whether waveforms are sent."},
	{"patient", "device", false, func(d *Destination) kind { return choice(&d.Patient, "device", "unknown", "omit") },
		"Whose values they are, PID: device sends the identity that was entered at the device, unknown always sends the unknown patient of IHE PCD, omit sends no identity for the platform to find by location."},
	{"assigning_authority", "", false, func(d *Destination) kind { return assigner(&d.AssigningAuthority) },
		"Who assigned the patient identifiers that the device knows, PID-3.4: a name, or name^id^type."},
	{"ack_timeout", "10s", false, func(d *Destination) kind { return duration(&d.AckTimeout, 100*time.Millisecond, 5*time.Minute) },
		"How long an acknowledgement may take. After it the connection is closed and the message sent again with the same control ID."},
	{"connect_timeout", "10s", false, func(d *Destination) kind { return duration(&d.ConnectTimeout, 100*time.Millisecond, 5*time.Minute) },
		"How long connecting and the TLS handshake may take together."},
	{"idle_timeout", "5m", false, func(d *Destination) kind { return duration(&d.IdleTimeout, time.Second, day) },
		"After how long without a message the connection is closed."},
	{"staple_max_age", "0s", false, func(d *Destination) kind { return duration(&d.StapleMaxAge, 0, 30*day) },
		"How old an OCSP response may be that the platform staples, even if it would hold for longer. 0s: as long as it says itself."},
	{"pacing", "0s", false, func(d *Destination) kind { return duration(&d.Pacing, 0, time.Minute) },
		"The least time between two messages, for platforms that cannot take a full queue at once."},
	{"on_reject", "continue", false, func(d *Destination) kind { return choice(&d.OnReject, "continue", "halt") },
		"What happens after AR or CR: continue puts the message into quarantine and goes on, halt stops the queue until an operator releases or drops it."},
	{"strict_ack", false, false, func(d *Destination) kind { return yesNo(&d.StrictAck) },
		"Whether the letter of the acknowledgement must fit the mode that was asked for. Platforms that answer AA where CA is due are common, so that false takes either."},
}

var portKeys = section[Port]{
	{"name", nil, true, func(p *Port) kind { return label(&p.Name) },
		"The name of this port in status, logs and metrics."},
	{"device", nil, true, func(p *Port) kind { return device(&p.Device) },
		"Where the device is: a path below /dev/serial/by-path or by-id, tcp://host:port for a serial server, udp://host or udp://host:port for a device on the network."},
	{"driver", nil, true, func(p *Port) kind { return text(&p.Driver, 32) },
		"The protocol of the device. gatewayd check --explain port.options lists the drivers."},
	{"line", "", false, func(p *Port) kind { return optional(line(&p.Line)) },
		"The settings of a serial line. Empty or auto: those that are usual for the driver, tried one after the other."},
	{"listen_only", false, false, func(p *Port) kind { return yesNo(&p.ListenOnly) },
		"Whether nothing may be transmitted to the device. Only for drivers whose devices talk unasked."},
	{"allow_simulated", false, false, func(p *Port) kind { return yesNo(&p.AllowSimulated) },
		"Whether values that the device marks as demonstration or test are sent. For demonstrations only: a platform may take them for a patient's."},
	{"device_eui64", "", false, func(p *Port) kind { return optional(eui64(&p.DeviceEUI64)) },
		"The EUI-64 of the device, where the device itself tells none."},
	{"device_timezone", "", false, func(p *Port) kind { return optional(zone(&p.DeviceZone)) },
		"The time zone that the clock of the device shows. Empty: that of the gateway."},
	{"record", "", false, func(p *Port) kind { return path(&p.Record) },
		"A file to which everything the device sends is recorded, patient identifiers included. For support only."},
}

var southboundKeys = section[Southbound]{
	{"listen", ":" + DefaultPort, false, func(s *Southbound) kind { return listenAddress(&s.Listen) },
		"host:port to listen on for devices that speak IHE PCD over MLLP and TLS themselves. Without a host: on all addresses. The port is 2575 if it is left out. Where the whole section is left out, nothing listens."},
	{"trust", nil, true, func(s *Southbound) kind { return file(&s.Trust) },
		"The PEM file of the root certificates that the chains of devices, and our own, must end in: those of the ECC and of the RSA chains. No other root is trusted."},
	{"authorised", nil, true, func(s *Southbound) kind { return deviceNames(&s.Authorised) },
		"The devices that may connect, by the common name of their certificates: their EUI-64. Nobody else gets in."},
	{"crls", []any{}, false, func(s *Southbound) kind { return paths(&s.CRLs) },
		"Files with the certificate revocation lists of the CAs of the devices, for the time when no OCSP responder answers. A PEM file may hold the certificate of the issuer too, where it is neither in trust nor in our own chains. They are renewed from the URL in them, into state_dir."},
	{"destination", []any{}, false, func(s *Southbound) kind { return labels(&s.Destinations) },
		"The names of the destinations that the messages go to, unchanged. Empty: all."},
	{"leaf_only_tls13", false, false, func(s *Southbound) kind { return yesNo(&s.LeafOnly13) },
		"Whether only the first certificate is stapled for in TLS 1.3, for devices that fail when more responses come. In TLS 1.2 nothing changes."},
	{"min_tls", "1.2", false, func(s *Southbound) kind { return choice(&s.MinTLS, "1.2", "1.3") },
		"The lowest version of TLS that a device may speak. Below 1.2 nobody gets in."},
	{"max_connections", int64(256), false, func(s *Southbound) kind { return number(&s.MaxConnections, 1, 4096) },
		"How many connections may be open at a time."},
	{"max_per_device", int64(4), false, func(s *Southbound) kind { return number(&s.MaxPerDevice, 1, 64) },
		"How many connections one device may have. A further one ends its oldest."},
	{"max_message", "1MiB", false, func(s *Southbound) kind { return size(&s.MaxMessage, 1<<10, 16<<20) },
		"How large a message may be. A larger one ends the connection."},
	{"handshake_timeout", "30s", false, func(s *Southbound) kind { return duration(&s.HandshakeTimeout, time.Second, time.Minute) },
		"How long the TLS handshake may take, the questions to OCSP responders included, and the wait for the TPM where many devices connect at once: it signs for one after the other."},
	{"idle_timeout", "10m", false, func(s *Southbound) kind { return duration(&s.IdleTimeout, time.Second, day) },
		"After how long without a message a connection is closed."},
	{"message_timeout", "30s", false, func(s *Southbound) kind { return duration(&s.MessageTimeout, time.Second, 10*time.Minute) },
		"How long a message may take from its first byte to its last."},
}

var southIdentityKeys = section[ServerIdentity]{
	{"store", "", false, func(i *ServerIdentity) kind { return optional(label(&i.Store)) },
		"The name of a key in the TPM with its certificate, as in gatewayd enroll init --store NAME. There is one section for an ECC and one for an RSA certificate; without one of them, devices of that scheme cannot connect."},
	{"key_type", "ecc-p256", false, func(i *ServerIdentity) kind { return choice(&i.KeyType, "ecc-p256", "ecc-p384", "rsa-2048") },
		"The kind of key that gatewayd enroll makes for the store. Devices of the RSA scheme want rsa-2048."},
	{"name", "", false, func(i *ServerIdentity) kind { return optional(hostName(&i.Name)) },
		"The DNS name that devices find this server by, which its certificate is requested for."},
	{"certificate", "", false, func(i *ServerIdentity) kind { return path(&i.Certificate) },
		"The PEM file of a certificate that devices see, followed by its issuing certificates. Only with insecure_file_key, in place of store."},
	{"key", "", false, func(i *ServerIdentity) kind { return path(&i.Key) },
		"The PEM file of its private key. For development only, as in [identity]."},
	{"insecure_file_key", false, false, func(i *ServerIdentity) kind { return yesNo(&i.InsecureFileKey) },
		"Must be true while the private key is in a file, as in [identity]."},
}

var locationKeys = section[Location]{
	{"point_of_care", "", false, func(l *Location) kind { return text(&l.PointOfCare, 20) }, "The ward or unit, PV1-3.1."},
	{"room", "", false, func(l *Location) kind { return text(&l.Room, 20) }, "The room, PV1-3.2."},
	{"bed", "", false, func(l *Location) kind { return text(&l.Bed, 20) }, "The bed, PV1-3.3."},
	{"facility", "", false, func(l *Location) kind { return text(&l.Facility, 20) }, "The facility, PV1-3.4."},
}
