import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.Serializable;
import java.net.Socket;
import java.rmi.Remote;
import java.rmi.RemoteException;
import java.rmi.registry.LocateRegistry;
import java.rmi.registry.Registry;
import java.rmi.server.RMIClientSocketFactory;
import java.rmi.server.RMISocketFactory;
import java.rmi.server.UnicastRemoteObject;
import java.util.HashMap;
import java.util.Map;

/**
 * An RMI registry made by hand, with one object at first, as a web-application container may have it.
 *
 * <p>Arguments: the registry's port and the object's port (0: any); without arguments there is no registry, for a process
 * that only has what the options of the JVM give it. It says {@code ready} on its output, then carries out the commands of
 * its input, one a line, and answers each with {@code done} or {@code failed REASON}:
 *
 * <ul>
 *   <li>{@code export NAME PORT}: exports an object on the port (0: any) and binds it to the name.
 *   <li>{@code export-with-factory NAME PORT}: the same with a socket factory for clients.
 *   <li>{@code unexport NAME}: ends the object; its name is unbound.
 *   <li>{@code forget NAME}: ends the object; its name stays bound to a stub whose port is closed.
 *   <li>{@code bind-many COUNT}: binds the object of the name {@code service} to so many names more.
 * </ul>
 *
 * <p>It ends with its input.
 */
public final class RegistryServer {
    /** What the objects can do. */
    public interface Service extends Remote {
        String greet() throws RemoteException;
    }

    private static final class Greeter implements Service {
        @Override
        public String greet() {
            return "hello";
        }
    }

    /** Makes clients hold their sockets by a class of this server. */
    public static final class Factory implements RMIClientSocketFactory, Serializable {
        private static final long serialVersionUID = 1;

        @Override
        public Socket createSocket(String host, int port) throws IOException {
            return new Socket(host, port);
        }
    }

    private final Registry registry;
    private final Map<String, Greeter> objects = new HashMap<>();

    private RegistryServer(int port) throws RemoteException {
        registry = LocateRegistry.createRegistry(port);
    }

    private void export(String name, int port, RMIClientSocketFactory factory) throws Exception {
        Greeter object = new Greeter();
        Remote stub = factory == null
                ? UnicastRemoteObject.exportObject(object, port)
                : UnicastRemoteObject.exportObject(object, port, factory, RMISocketFactory.getDefaultSocketFactory());
        objects.put(name, object);
        registry.rebind(name, stub);
    }

    private void end(String name) throws Exception {
        UnicastRemoteObject.unexportObject(objects.remove(name), true);
    }

    private void execute(String[] words) throws Exception {
        switch (words[0]) {
            case "export" -> export(words[1], Integer.parseInt(words[2]), null);
            case "export-with-factory" -> export(words[1], Integer.parseInt(words[2]), new Factory());
            case "unexport" -> {
                registry.unbind(words[1]);
                end(words[1]);
            }
            case "forget" -> end(words[1]);
            case "bind-many" -> {
                for (int index = 0; index < Integer.parseInt(words[1]); index++) {
                    registry.rebind("name-" + index, registry.lookup("service"));
                }
            }
            default -> throw new IllegalArgumentException("unknown command " + words[0]);
        }
    }

    public static void main(String[] arguments) throws Exception {
        RegistryServer server = null;
        if (arguments.length > 0) {
            server = new RegistryServer(Integer.parseInt(arguments[0]));
            server.export("service", Integer.parseInt(arguments[1]), null);
        }
        System.out.println("ready");
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in));
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            try {
                server.execute(line.split(" "));
                System.out.println("done");
            } catch (Exception failure) {
                System.out.println("failed " + failure);
            }
        }
        System.exit(0);
    }
}
