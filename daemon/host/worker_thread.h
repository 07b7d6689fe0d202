// A thread that leaves signals to the main loop and has a name in ps and gdb.
#pragma once

#include <pthread.h>
#include <signal.h>

#include <thread>
#include <utility>

namespace usblease::host {

// `name`: at most 15 characters (pthread_setname_np).
template <typename Body>
std::thread start_worker(const char* name, Body body) {
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);  // inherited by the new thread
  std::thread thread(std::move(body));
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pthread_setname_np(thread.native_handle(), name);
  return thread;
}

}  // namespace usblease::host
