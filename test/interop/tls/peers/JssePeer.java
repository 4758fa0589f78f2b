import java.io.*;
import java.net.*;
import java.nio.charset.StandardCharsets;
import java.nio.file.*;
import java.security.*;
import java.security.cert.*;
import java.security.cert.Certificate;
import java.security.spec.PKCS8EncodedKeySpec;
import java.util.*;
import javax.net.ssl.*;

/**
 * Java's JSSE as the other side of one TLS connection after the other, each in
 * its own SSLContext. A job is a line on stdin of NAME=VALUE, with tabs between:
 *
 *   do=serve cert= key= trust= version= [suites=] [silent=]
 *   do=call  cert= key= trust= version= [suites=] [times=] port= host= message=
 *
 * serve says "port N" and takes one connection, after so many silent ones that
 * say nothing; both end with "done VERSION SUITE PEER HASH TEXT", HASH being the
 * SHA-256 of the peer's certificate, or "failed" and the whole chain of
 * exceptions. A device that calls several times does so with one memory for
 * sessions, and ends after the last, whatever became of those before. As a platform
 * it fetches and staples responses itself; as a device it demands stapled ones.
 * Keys are PKCS #8 in PEM, the chain and the trust PEM as well.
 */
public class JssePeer {
    static final int FIRST = 0x0b, LAST = 0x1c;

    public static void main(String[] args) throws Exception {
        System.setProperty("jdk.tls.client.enableStatusRequestExtension", "true");
        System.setProperty("jdk.tls.server.enableStatusRequestExtension", "true");
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line; (line = in.readLine()) != null; ) {
            Map<String, String> job = new HashMap<>();
            for (String word : line.split("\t")) {
                String[] pair = word.split("=", 2);
                job.put(pair[0], pair[1]);
            }
            try {
                if (job.get("do").equals("serve")) serve(job);
                else call(job);
            } catch (Throwable t) {
                say("failed " + causes(t));
            }
        }
    }

    static void say(String s) {
        System.out.println(s.replace('\r', ' ').replace('\n', ' '));
        System.out.flush();
    }

    static String causes(Throwable t) {
        StringBuilder b = new StringBuilder();
        for (; t != null; t = t.getCause()) b.append(t.getClass().getSimpleName()).append(": ").append(t.getMessage()).append("; ");
        return b.toString();
    }

    static void serve(Map<String, String> job) throws Exception {
        SSLServerSocketFactory f = context(job, false).getServerSocketFactory();
        try (SSLServerSocket l = (SSLServerSocket) f.createServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
            l.setSoTimeout(20000);
            say("port " + l.getLocalPort());
            for (int n = Integer.parseInt(job.getOrDefault("silent", "0")); n > 0; n--) silent(l, job);
            try (SSLSocket s = (SSLSocket) l.accept()) {
                s.setNeedClientAuth(true);
                restrict(s, job);
                s.startHandshake();
                byte[] message = read(s.getInputStream());
                write(s.getOutputStream(), acknowledgement(message));
                say(done(s, text(message)));
                s.getInputStream().read(); // the peer closes first
            }
        }
    }

    /** A connection over which nothing is said. What becomes of it is its caller's matter. */
    static void silent(SSLServerSocket l, Map<String, String> job) throws IOException {
        try (SSLSocket s = (SSLSocket) l.accept()) {
            s.setNeedClientAuth(true);
            restrict(s, job);
            s.getInputStream().read();
        } catch (SSLException | SocketException e) {
            // refused, or reset
        }
    }

    static void call(Map<String, String> job) throws Exception {
        SSLContext context = context(job, true);
        for (int n = Integer.parseInt(job.getOrDefault("times", "1")); n > 1; n--) {
            try {
                call(job, context);
            } catch (IOException e) {
                // what the other side saw is what counts
            }
        }
        say(call(job, context));
    }

    static String call(Map<String, String> job, SSLContext context) throws Exception {
        String host = job.get("host");
        Socket plain = new Socket(InetAddress.getLoopbackAddress(), Integer.parseInt(job.get("port")));
        try (SSLSocket s = (SSLSocket) context.getSocketFactory().createSocket(plain, host, 2575, true)) {
            restrict(s, job);
            SSLParameters p = s.getSSLParameters();
            p.setEndpointIdentificationAlgorithm("HTTPS");
            s.setSSLParameters(p);
            s.startHandshake();
            write(s.getOutputStream(), Files.readAllBytes(Path.of(job.get("message"))));
            return done(s, text(read(s.getInputStream())));
        }
    }

    static String done(SSLSocket s, String text) throws Exception {
        X509Certificate peer = (X509Certificate) s.getSession().getPeerCertificates()[0];
        return "done " + s.getSession().getProtocol() + " " + s.getSession().getCipherSuite() + " "
            + peer.getSubjectX500Principal().getName().replace(' ', '_') + " " + hash(peer.getEncoded()) + " " + text;
    }

    static String hash(byte[] b) throws Exception {
        return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(b));
    }

    static void restrict(SSLSocket s, Map<String, String> job) throws SocketException {
        s.setSoTimeout(20000);
        s.setEnabledProtocols(job.get("version").split(","));
        if (job.containsKey("suites")) s.setEnabledCipherSuites(job.get("suites").split(","));
    }

    static SSLContext context(Map<String, String> job, boolean client) throws Exception {
        List<X509Certificate> chain = certificates(job.get("cert"));
        String algorithm = chain.get(0).getPublicKey().getAlgorithm();
        PrivateKey key = KeyFactory.getInstance(algorithm).generatePrivate(new PKCS8EncodedKeySpec(pem(job.get("key"))));
        KeyStore own = KeyStore.getInstance("PKCS12");
        own.load(null);
        own.setKeyEntry("own", key, new char[0], chain.toArray(new Certificate[0]));
        KeyManagerFactory keys = KeyManagerFactory.getInstance("PKIX");
        keys.init(own, new char[0]);

        KeyStore roots = KeyStore.getInstance("PKCS12");
        roots.load(null);
        for (X509Certificate c : certificates(job.get("trust"))) roots.setCertificateEntry(c.getSubjectX500Principal().getName(), c);
        PKIXBuilderParameters rules = new PKIXBuilderParameters(roots, new X509CertSelector());
        rules.setRevocationEnabled(client);
        if (client) {
            PKIXRevocationChecker checker = (PKIXRevocationChecker) CertPathBuilder.getInstance("PKIX").getRevocationChecker();
            checker.setOptions(EnumSet.of(PKIXRevocationChecker.Option.NO_FALLBACK));
            rules.addCertPathChecker(checker);
        }
        TrustManagerFactory trust = TrustManagerFactory.getInstance("PKIX");
        trust.init(new CertPathTrustManagerParameters(rules));

        SSLContext context = SSLContext.getInstance("TLS");
        context.init(keys.getKeyManagers(), trust.getTrustManagers(), null);
        return context;
    }

    static List<X509Certificate> certificates(String file) throws Exception {
        List<X509Certificate> list = new ArrayList<>();
        try (InputStream in = new FileInputStream(file)) {
            for (Certificate c : CertificateFactory.getInstance("X.509").generateCertificates(in)) list.add((X509Certificate) c);
        }
        return list;
    }

    static byte[] pem(String file) throws Exception {
        StringBuilder b = new StringBuilder();
        for (String line : Files.readAllLines(Path.of(file))) if (!line.startsWith("-----")) b.append(line);
        return Base64.getDecoder().decode(b.toString());
    }

    static void write(OutputStream out, byte[] message) throws IOException {
        ByteArrayOutputStream block = new ByteArrayOutputStream();
        block.write(FIRST);
        block.write(message);
        block.write(LAST);
        block.write('\r');
        out.write(block.toByteArray());
        out.flush();
    }

    static byte[] read(InputStream in) throws IOException {
        ByteArrayOutputStream b = new ByteArrayOutputStream();
        if (in.read() != FIRST) throw new EOFException("no MLLP block begins");
        for (int c; (c = in.read()) != LAST; b.write(c)) if (c < 0) throw new EOFException("the MLLP block has no end");
        if (in.read() != '\r') throw new IOException("no carriage return behind the MLLP block");
        return b.toByteArray();
    }

    static String text(byte[] message) { return new String(message, StandardCharsets.UTF_8); }

    static byte[] acknowledgement(byte[] message) {
        String id = text(message).split("\r")[0].split("\\|")[9];
        return ("MSH|^~\\&|JSSE||GW||20260101000000+0000||ACK^R01^ACK|A" + id + "|P|2.6\rMSA|CA|" + id + "\r").getBytes(StandardCharsets.UTF_8);
    }
}
