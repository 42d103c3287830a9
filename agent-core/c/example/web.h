/* A listener that crosses change-overs, and requests that are answered one a thread. Include it in one file. */
#ifndef WEB_H
#define WEB_H

#include <agent_core.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct web {
    agent_core_intake *intake;
    void (*answer)(int stream); /* writes the answer to a request whose head was read */
};

struct web_connection {
    const struct web *web;
    int stream;
    agent_core_pass *pass;
};

static void web_fail(const agent_core_error *error) {
    fprintf(stderr, "%s\n", error->text);
    exit(1); /* the version before returns */
}

/* Reads to the end of the request's head. Returns whether anything came. */
static int web_read_head(int stream) {
    char bytes[4096];
    size_t length = 0;
    ssize_t n = 1;
    while (n > 0 && length < sizeof bytes - 1) {
        n = read(stream, bytes + length, sizeof bytes - 1 - length);
        length += n > 0 ? (size_t)n : 0;
        bytes[length] = 0;
        if (strstr(bytes, "\r\n\r\n"))
            break;
    }
    return length > 0;
}

static void *web_connection_answer(void *given) {
    struct web_connection *connection = given;
    if (web_read_head(connection->stream))
        connection->web->answer(connection->stream);
    close(connection->stream);
    agent_core_leave(connection->pass); /* a change-over waits until here */
    free(connection);
    return NULL;
}

static void *web_serve(void *given) {
    const struct web *web = given;
    for (;;) {
        agent_core_error error;
        agent_core_pass *pass;
        int stream = agent_core_accept(web->intake, &pass, &error);
        if (stream < 0) { /* out of descriptors, say */
            fprintf(stderr, "%s\n", error.text);
            usleep(10000);
            continue;
        }
        struct web_connection *connection = malloc(sizeof *connection);
        pthread_t thread;
        if (connection)
            *connection = (struct web_connection){web, stream, pass};
        if (!connection || pthread_create(&thread, NULL, web_connection_answer, connection)) {
            close(stream);
            agent_core_leave(pass);
            free(connection);
        } else {
            pthread_detach(thread);
        }
    }
    return NULL;
}

/* Takes the listener over from the version before, or makes it. Before agent_core_start. */
static void web_listen(struct web *web, agent_core *agent, const char *address) {
    agent_core_error error;
    int listener = agent_core_listen_tcp(agent, "http", address, &error);
    if (listener < 0)
        web_fail(&error);
    web->intake = agent_core_intake_new(agent, listener, &error);
    if (!web->intake)
        web_fail(&error);
}

/* Answers from now on. After agent_core_start, which has restored the state. `web` stays where it is. */
static void web_start(struct web *web) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, web_serve, web)) {
        fprintf(stderr, "no thread can be started\n");
        exit(1);
    }
    pthread_detach(thread);
}

#endif
