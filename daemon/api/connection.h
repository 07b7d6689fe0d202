// One client of the server: its bytes in, its bytes out, its unanswered requests. Private to daemon/api/.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "common/frame.h"
#include "daemon/api/server.h"

namespace usblease::api {

class Server::Connection : public AnswerSink, public std::enable_shared_from_this<Connection> {
 public:
  Connection(Server& server, std::uint64_t id, UniqueFd fd, const PeerCredentials& peer);
  void start();
  // The server is being destroyed: hangs up without a callback to anybody.
  void drop();
  [[nodiscard]] uid_t uid() const { return peer_.uid; }

  void answer(ServerFrame& frame) override;

 private:
  // kEnding: a last frame goes out, nothing comes in. kBroken: closes as soon as the main loop is back.
  enum class Stage : std::uint8_t { kHello, kOpen, kEnding, kBroken, kClosed };

  void on_ready(GIOCondition ready);
  void receive();
  void pump();
  void schedule_pump();
  [[nodiscard]] bool can_take() const;
  void take(const std::string& payload);
  void greet(const ClientFrame& frame);
  void request(const ClientFrame& frame);
  [[nodiscard]] bool refused_here(const ClientFrame& frame);

  void reply(std::uint64_t id, command::Code code, std::string message);
  void queue(ServerFrame& frame);
  void flush();
  void watch_output();
  void check_progress();
  [[nodiscard]] std::size_t output_bytes() const { return output_.size() - output_sent_; }

  void end(std::uint64_t id, command::Code code, const std::string& message, const HelloReply* hello = nullptr);
  void cut_off(const char* why);
  void close();
  void abandon_requests();
  void update_watch();
  [[nodiscard]] std::string peer_text() const;

  Server* server_;  // null after drop()
  const std::uint64_t id_;
  UniqueFd fd_;
  const PeerCredentials peer_;
  Caller caller_;
  Stage stage_ = Stage::kHello;

  FrameReader reader_;
  std::map<std::uint64_t, std::weak_ptr<Responder::Impl>> unanswered_;
  bool pumping_ = false;      // output is collected and written once at the end
  bool pump_posted_ = false;  // pump() is due without new input
  bool paused_ = false;       // frames may wait in reader_

  std::string output_;
  std::size_t output_sent_ = 0;
  bool blocked_ = false;  // the socket takes no more at present
  std::uint64_t progress_ns_ = 0;

  int watched_ = -1;    // the conditions of watch_, -1: none
  SourceHandle watch_;  // after fd_: goes first
  SourceHandle timer_;  // Hello, then stalled output
};

}  // namespace usblease::api
