// Form C has the names of form A; the calls are lowered synchronously, each waits for its answer.

#define SHAPE_ASYNC
