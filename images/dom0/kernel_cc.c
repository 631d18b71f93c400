/*
 * The compiler of the control guest's kernel: gcc, with Linux's macros for each file behind the precompiled header.
 *
 * Why: half of the time of a kernel's build goes into reading the same headers again. gcc does not use a precompiled header if a
 * macro on the command line occurs in it, and kbuild defines KBUILD_MODNAME and others there, with another value for each file.
 *
 * How: these macros go to a small header next to the object, which is included after the precompiled one. A few files clash with a
 * header that they do not include (lib/sort.c has a parameter called swap). They are compiled a second time, without any of this.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), most = strlen(end);

    return length >= most && !strcmp(text + length - most, end);
}

/* Whether a program ends with success. Its messages are dropped: the second attempt prints its own. */
static int compiles(char **argv)
{
    int status, null = open("/dev/null", O_WRONLY);
    pid_t child = fork();

    if (child < 0)
        return 0;
    if (child == 0) {
        dup2(null, 2);
        execvp(argv[0], argv);
        _exit(127);
    }
    close(null);
    return waitpid(child, &status, 0) == child && status == 0;
}

int main(int argc, char **argv)
{
    char **kept = calloc(argc + 3, sizeof(*kept)), *path = NULL;
    const char *object = NULL, *source = NULL;
    FILE *names = NULL;
    int n = 0;

    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "-o") && i + 1 < argc)
            object = argv[++i];
        else if (ends_with(argv[i], ".c"))
            source = argv[i];
    }
    if (object && source && ends_with(object, ".o")) {
        path = malloc(strlen(object) + sizeof(".names.h"));
        strcat(strcpy(path, object), ".names.h");
        names = fopen(path, "w");
        if (!names) {
            perror(path);
            return 1;
        }
    }
    kept[n++] = "gcc";
    for (int i = 1; i < argc; i++) {
        char *equals = strchr(argv[i], '=');

        if (names && equals && (!strncmp(argv[i], "-DKBUILD_", 9) || !strncmp(argv[i], "-D__KBUILD_", 11)))
            fprintf(names, "#define %.*s %s\n", (int)(equals - argv[i] - 2), argv[i] + 2, equals + 1);
        else
            kept[n++] = argv[i];
    }
    if (names) {
        if (fclose(names)) {
            perror(path);
            return 1;
        }
        kept[n++] = "-include";
        kept[n++] = path;
        if (compiles(kept))
            return 0;
    }
    argv[0] = "gcc";
    execvp(argv[0], argv);
    perror(argv[0]);
    return 127;
}
