/* A web service that changes its version without refusing or cutting anybody: service ADDRESS
 *
 * Each request is answered on a thread of its own, with the version and how many were answered before, since the very
 * first version began. `manager-fs job run service tell --arg of=requests --host HOST` says how many. */
#include <agent_core.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static agent_core *agent;
static agent_core_intake *intake;
static atomic_ullong answered;

struct connection {
    int stream;
    agent_core_pass *pass;
};

static void fail(const agent_core_error *error) {
    fprintf(stderr, "service: %s\n", error->text);
    exit(1); /* the version before returns */
}

static void *answer(void *given) {
    struct connection *connection = given;
    char bytes[4096];
    size_t read_so_far = 0;
    ssize_t n = 1;
    while (n > 0 && read_so_far < sizeof bytes - 1) { /* to the end of the request's head */
        n = read(connection->stream, bytes + read_so_far, sizeof bytes - 1 - read_so_far);
        read_so_far += n > 0 ? (size_t)n : 0;
        bytes[read_so_far] = 0;
        if (strstr(bytes, "\r\n\r\n"))
            break;
    }
    if (read_so_far > 0)
        dprintf(connection->stream, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nversion %s answered %llu before\n",
                agent_core_version(agent), atomic_fetch_add(&answered, 1));
    close(connection->stream);
    agent_core_leave(connection->pass); /* a change-over waits until here */
    free(connection);
    return NULL;
}

static void *serve(void *unused) {
    for (;;) {
        agent_core_error error;
        agent_core_pass *pass;
        int stream = agent_core_accept(intake, &pass, &error);
        if (stream < 0) { /* out of descriptors, say */
            fprintf(stderr, "service: %s\n", error.text);
            usleep(10000);
            continue;
        }
        struct connection *connection = malloc(sizeof *connection);
        pthread_t thread;
        if (connection)
            *connection = (struct connection){stream, pass};
        if (!connection || pthread_create(&thread, NULL, answer, connection)) {
            close(stream);
            agent_core_leave(pass);
            free(connection);
        } else {
            pthread_detach(thread);
        }
    }
    return unused;
}

static int32_t save_state(void *user, uint32_t schema, agent_core_answer *state) {
    unsigned long long count = atomic_load(&answered);
    (void)user, (void)schema;
    return agent_core_answer_write(state, (const uint8_t *)&count, sizeof count);
}

static int32_t restore_state(void *user, uint32_t schema, const uint8_t *state, size_t length, agent_core_answer *why) {
    unsigned long long count;
    (void)user, (void)schema;
    if (length != sizeof count) {
        const char *text = "the count has another size";
        agent_core_answer_write(why, (const uint8_t *)text, strlen(text));
        return 1;
    }
    memcpy(&count, state, sizeof count);
    atomic_store(&answered, count);
    return 0;
}

static int32_t tell(void *user, agent_core_context *context, agent_core_answer *why) {
    const char *of = agent_core_argument(context, "of");
    char text[32];
    (void)user;
    if (!of || strcmp(of, "requests") != 0) {
        const char *reason = "want --arg of=requests";
        agent_core_answer_write(why, (const uint8_t *)reason, strlen(reason));
        return AGENT_CORE_FAILED;
    }
    snprintf(text, sizeof text, "%llu", atomic_load(&answered));
    return agent_core_result(context, "requests", text);
}

int main(int argc, char **argv) {
    agent_core_error error;
    if (argc != 2) {
        fprintf(stderr, "usage: service ADDRESS\n");
        return 2;
    }
    agent = agent_core_open(&error); /* first: it takes over what the stub, or the version before, left open */
    if (!agent)
        fail(&error);
    int listener = agent_core_listen_tcp(agent, "http", argv[1], &error);
    if (listener < 0)
        fail(&error);
    intake = agent_core_intake_new(agent, listener, &error);
    if (!intake)
        fail(&error);
    const char *arguments[] = {"of", NULL};
    if (agent_core_on(agent, "tell", arguments, tell, NULL, &error))
        fail(&error);
    agent_core_operations operations = {
        .size = sizeof operations, .save_state = save_state, .restore_state = restore_state};
    if (agent_core_start(agent, &operations, &error))
        fail(&error);
    pthread_t thread;
    if (pthread_create(&thread, NULL, serve, NULL)) {
        fprintf(stderr, "service: no thread can be started\n");
        return 1;
    }
    if (agent_core_wait(agent, NULL, &error)) /* until SIGTERM */
        fail(&error);
    return 0;
}
