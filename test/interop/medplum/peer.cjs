// Medplum's HL7 packages as the other side.
//
//   node peer.cjs parse                  messages on stdin, a blank line between: one JSON line each
//   node peer.cjs serve [CERT KEY TRUST [STAPLE]]   a platform on mutual TLS, or on none; prints its port, then one JSON line a message
const { readFileSync } = require('node:fs');
const net = require('node:net');
const tls = require('node:tls');
// The package extends the browser's WebSocket when it loads; older Node.js has none, and HL7 needs none.
globalThis.WebSocket ??= class extends EventTarget {};

const { Hl7Message } = require('@medplum/core');
const { Hl7Connection } = require('@medplum/hl7');

const [mode, cert, key, trust, staple] = process.argv.slice(2);

function digest(message) {
  const rows = message.segments
    .filter((s) => s.name === 'OBX')
    .map((s) => {
      const at = (n, c = 1) => s.getComponent(n, c) ?? '';
      return [at(1), at(2), at(3), at(3, 2), at(4), at(5), at(6), at(11)];
    });
  const msh = message.header;
  return {
    control: msh.getField(10).toString(),
    type: msh.getField(9).toString(),
    segments: message.segments.filter((s) => s.name).length,
    obx: rows,
  };
}

const show = (message) => process.stdout.write(JSON.stringify(digest(message)) + '\n');

if (mode === 'parse') {
  for (const part of readFileSync(0, 'utf8').split('\n\n')) {
    if (part.trim() !== '') {
      show(Hl7Message.parse(part.replace(/\n/g, '')));
    }
  }
} else {
  const server = cert
    ? tls.createServer({
        cert: readFileSync(cert),
        key: readFileSync(key),
        ca: readFileSync(trust),
        requestCert: true,
        rejectUnauthorized: true,
        minVersion: 'TLSv1.2',
      })
    : net.createServer();
  if (staple) {
    server.on('OCSPRequest', (_certificate, _issuer, done) => done(null, readFileSync(staple)));
  }
  server.on(cert ? 'secureConnection' : 'connection', (socket) => {
    const connection = new Hl7Connection(socket, 'utf-8');
    connection.addEventListener('message', ({ message }) => {
      show(message);
      connection.send(message.buildAck({ ackCode: 'CA' }));
    });
    connection.addEventListener('error', () => socket.destroy());
  });
  server.on('tlsClientError', (err) => process.stderr.write(`${err.message}\n`));
  server.listen(0, '127.0.0.1', () => process.stdout.write(`${server.address().port}\n`));
}
