import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.time.Duration;
import java.util.stream.IntStream;

/**
 * An HTTP client in Java, as an agent would write one. Arguments: the URL, the version of HTTP to ask for, and the one
 * that is to be spoken. Prints `ok`.
 */
public class JavaClient {
    static void check(boolean is, Object what) {
        if (!is) {
            System.out.println(what);
            System.exit(1);
        }
    }

    public static void main(String[] arguments) throws Exception {
        var url = arguments[0];
        var version = HttpClient.Version.valueOf(arguments[2]);
        // What the caller had the JVM do is still done.
        check("kept".equals(System.getProperty("mine")), "JAVA_TOOL_OPTIONS of the caller are gone");
        var client = HttpClient.newBuilder().version(HttpClient.Version.valueOf(arguments[1]))
            .connectTimeout(Duration.ofSeconds(30)).build();

        var sent = "{\"mail\": \"someone@example.com\", \"amount\": 7}";
        var post = HttpRequest.newBuilder(URI.create(url + "/body?type=application/json"))
            .header("Content-Type", "application/json").header("Authorization", "Bearer mine")
            .POST(BodyPublishers.ofString(sent)).build();
        HttpResponse<String> answer = client.send(post, BodyHandlers.ofString());
        check(answer.statusCode() == 200 && answer.version() == version, answer);
        check(answer.body().equals(sent.replace("someone@example.com", "[redacted]")), answer.body());

        var delete = HttpRequest.newBuilder(URI.create(url + "/admin/users/7")).DELETE().build();
        answer = client.send(delete, BodyHandlers.ofString());
        var kind = answer.headers().firstValue("Content-Type").orElse("none");
        check(answer.statusCode() == 403 && kind.startsWith("application/problem+json"), answer + " of " + kind);
        check(answer.body().contains("\"rule\":\"no administration\""), answer.body());
        check(answer.version() == version, answer.version());

        // Several at once, after the refusal.
        var all = IntStream.range(0, 20).mapToObj(n -> {
            var get = HttpRequest.newBuilder(URI.create(url + "/echo?n=" + n)).build();
            return client.sendAsync(get, BodyHandlers.ofString()).thenApply(one -> {
                check(one.body().contains("\"/echo?n=" + n + "\"") && one.version() == version, one + one.body());
                return n;
            });
        }).toList();
        for (var one : all) {
            one.join();
        }
        System.out.println("ok");
    }
}
