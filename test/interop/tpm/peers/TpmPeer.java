import java.io.*;
import java.net.InetAddress;
import java.security.KeyStore;
import javax.net.ssl.*;

/** One mutual TLS session of JSSE: it echoes a line as a server, or has one echoed as a client. */
public class TpmPeer {
    public static void main(String[] a) throws Exception {
        String role = a[0], version = a[1], store = a[2];
        int port = Integer.parseInt(a[3]);
        char[] password = "changeit".toCharArray();
        KeyStore keys = KeyStore.getInstance("PKCS12");
        keys.load(new FileInputStream(store), password);
        KeyManagerFactory km = KeyManagerFactory.getInstance("PKIX");
        km.init(keys, password);
        KeyStore roots = KeyStore.getInstance("PKCS12");
        roots.load(null, password);
        try (InputStream in = new FileInputStream(a[4])) {
            roots.setCertificateEntry("root", java.security.cert.CertificateFactory.getInstance("X.509").generateCertificate(in));
        }
        TrustManagerFactory tm = TrustManagerFactory.getInstance("PKIX");
        tm.init(roots);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(km.getKeyManagers(), tm.getTrustManagers(), null);
        InetAddress here = InetAddress.getByName("127.0.0.1");
        if (role.equals("server")) {
            try (SSLServerSocket l = (SSLServerSocket) context.getServerSocketFactory().createServerSocket(0, 1, here)) {
                l.setNeedClientAuth(true);
                l.setEnabledProtocols(new String[] {version});
                System.out.println(l.getLocalPort());
                try (SSLSocket s = (SSLSocket) l.accept()) {
                    s.setSoTimeout(20000);
                    line(s).writeTo(s.getOutputStream());
                    System.out.println("done " + s.getSession().getPeerPrincipal());
                }
            }
            return;
        }
        try (SSLSocket s = (SSLSocket) context.getSocketFactory().createSocket(here, port)) {
            s.setSoTimeout(20000);
            s.setEnabledProtocols(new String[] {version});
            SSLParameters p = s.getSSLParameters();
            p.setEndpointIdentificationAlgorithm("HTTPS");
            s.setSSLParameters(p);
            s.getOutputStream().write("hello\n".getBytes());
            if (!line(s).toString().equals("hello\n")) {
                throw new IOException("another line came back");
            }
            System.out.println("done " + s.getSession().getPeerPrincipal());
        }
    }

    static ByteArrayOutputStream line(SSLSocket s) throws IOException {
        ByteArrayOutputStream b = new ByteArrayOutputStream();
        for (int c; (c = s.getInputStream().read()) >= 0; ) {
            b.write(c);
            if (c == '\n') {
                break;
            }
        }
        return b;
    }
}
