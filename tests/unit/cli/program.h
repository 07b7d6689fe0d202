// The real usblease as a process, and a daemon that does what the test says.
#pragma once

#include <sys/types.h>

#include <map>
#include <string>
#include <vector>

#include "api.pb.h"
#include "common/fd.h"
#include "common/frame.h"

// A directory for one test case, made and removed outside of the forked tests: also after one that failed.
void make_test_directory();
void remove_test_directory();
const std::string& test_directory();
std::string test_socket();

// One accepted connection. Every wait is bounded; what does not come fails the test.
class Peer {
 public:
  explicit Peer(usblease::UniqueFd fd) : fd_(std::move(fd)) {}
  usblease::api::ClientFrame receive();
  // Receives the hello and answers it.
  void greet();
  void send(const usblease::api::ServerFrame& frame);
  // `frame` with this id and status OK.
  void finish(const usblease::api::ClientFrame& request, usblease::api::ServerFrame frame);
  void fail(const usblease::api::ClientFrame& request, usblease::command::Code code, const std::string& message);
  void send_raw(const std::string& bytes);
  // Waits until the program has closed its end.
  void wait_closed();
  void hang_up() { fd_.reset(); }

 private:
  usblease::UniqueFd fd_;
  usblease::FrameReader reader_;
};

class FakeDaemon {
 public:
  // Listens at test_socket().
  FakeDaemon();
  ~FakeDaemon();
  FakeDaemon(const FakeDaemon&) = delete;
  FakeDaemon& operator=(const FakeDaemon&) = delete;
  // Accepts; greeted unless told otherwise.
  Peer accept(bool greet = true);

 private:
  usblease::UniqueFd listening_;
};

struct Outcome {
  int exit_code = -1;
  std::string out;
  std::string err;
};

class Program {
 public:
  // With `-c test_socket()` in front unless `arguments` begin with "--complete". Streams are files in memory; with
  // kTerminal they are all one pseudo terminal, with kFullOutput stdout is a full disk.
  enum class Streams { kFiles, kTerminal, kFullOutput };
  explicit Program(std::vector<std::string> arguments, const std::string& input = "",
                   Streams streams = Streams::kFiles);
  ~Program();
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  Outcome wait();
  void interrupt() const;  // SIGINT
  // Until the program has written `text`.
  void wait_output(const std::string& text) const;
  void wait_errors(const std::string& text) const;
  // Terminal only: types, and reads until `text` is shown, after what was read before.
  void type(const std::string& keys);
  void read_until(const std::string& text);
  // Until keys are no longer the terminal's: libedit shows its prompt before, and a ^D in between is lost.
  void wait_editing() const;

 private:
  void spawn(const std::vector<std::string>& arguments);
  usblease::UniqueFd input_;
  usblease::UniqueFd output_;
  usblease::UniqueFd errors_;
  usblease::UniqueFd terminal_;
  usblease::UniqueFd pid_fd_;
  pid_t pid_ = -1;
  std::string shown_;  // not read by read_until() yet
};

// Starts the program, accepts it, gives it `reply` (with the request's id and status OK), and returns what it did.
struct Exchange {
  usblease::api::ClientFrame request;
  Outcome outcome;
};
Exchange exchange(const std::vector<std::string>& arguments, const usblease::api::ServerFrame& reply);
