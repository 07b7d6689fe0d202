// usbleased: reads the configuration, puts the parts together, and runs the main loop.
#include <glib-unix.h>
#include <google/protobuf/stubs/logging.h>
#include <grp.h>
#include <pwd.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/boottime.h"
#include "common/config.h"
#include "common/frame.h"
#include "common/glib_ptr.h"
#include "common/log.h"
#include "common/machine_id.h"
#include "daemon/api/activation.h"
#include "daemon/api/requests.h"
#include "daemon/api/service_manager.h"
#include "daemon/cluster/node.h"
#include "daemon/cluster/tls_transport.h"
#include "daemon/cluster_parts.h"
#include "daemon/host/file_watch.h"
#include "daemon/host/host_agent.h"
#include "daemon/host/libvirt_hypervisor.h"
#include "daemon/host/rungs.h"
#include "daemon/host/usb_bus.h"
#include "daemon/host/usb_gate.h"
#include "daemon/lease/keys.h"
#include "daemon/store/etcd_store.h"
#include "daemon/store/sqlite_store.h"

namespace usblease {
namespace {

constexpr const char* kVersion = USBLEASE_VERSION;
constexpr std::uint64_t kRestartNs = 200'000'000;            // who has asked gets his answer first
constexpr std::uint64_t kReadyMaxNs = 5ULL * 1'000'000'000;  // a host must come up also where nobody coordinates
constexpr int kRestartMe = 75;                               // not 0, so that Restart=on-failure does

struct Arguments {
  std::string config_path = kDefaultConfigPath;
  bool check_only = false;
};

// kBadInput: what is wrong with the command line.
Result<Arguments> parse_arguments(int argc, char** argv, bool* version) {
  Arguments arguments;
  char* config = nullptr;
  gboolean check = FALSE;
  gboolean show_version = FALSE;
  const GOptionEntry entries[] = {
      {"config", 'c', 0, G_OPTION_ARG_FILENAME, &config, "Configuration (default /etc/usblease/usbleased.conf)",
       "FILE"},
      {"check-config", 0, 0, G_OPTION_ARG_NONE, &check, "Check the configuration and exit", nullptr},
      {"version", 'V', 0, G_OPTION_ARG_NONE, &show_version, "Print the version and exit", nullptr},
      {nullptr, 0, 0, G_OPTION_ARG_NONE, nullptr, nullptr, nullptr}};
  const GPtr<GOptionContext, g_option_context_free> context(
      g_option_context_new("- arbitrate USB devices between guests"));
  g_option_context_add_main_entries(context.get(), entries, nullptr);
  GErrorOut error;
  const bool parsed = g_option_context_parse(context.get(), &argc, &argv, error.out()) != FALSE;
  const GChars config_owner(config);
  if (!parsed) return fail(ErrorCode::kBadInput, error.message());
  if (argc > 1)
    return fail(ErrorCode::kBadInput, std::string("unexpected argument ") + argv[1] + "; see usbleased --help");
  if (config != nullptr) arguments.config_path = config;
  arguments.check_only = check != FALSE;
  *version = show_version != FALSE;
  return arguments;
}

Result<void> make_directory(const std::string& path, mode_t mode) {
  if (g_mkdir_with_parents(path.c_str(), static_cast<int>(mode)) != 0)
    return fail_errno("cannot make the directory " + path, errno);
  return {};
}

Result<host::RelayOptions> relay_options(const Config& config) {
  host::RelayOptions options;
  options.run_dir = config.run_dir;
  options.relay_path = config.relay_path;
  const passwd* user = getpwnam(config.relay_user.c_str());
  if (user == nullptr) return fail(ErrorCode::kBadInput, "relay_user=" + config.relay_user + ": there is no such user");
  options.uid = user->pw_uid;
  options.gid = user->pw_gid;
  return options;
}

std::vector<record::Rung> available_rungs(const Config& config, const std::string& page_trouble) {
  std::vector<record::Rung> rungs;
  for (const auto& report : host::report_rungs(config, {true, page_trouble})) {
    if (report.available()) rungs.push_back(report.rung());
  }
  return rungs;
}

record::Host describe_self(const Config& config, const std::string& boot_id) {
  record::Host self;
  self.set_id(config.host_id);
  self.set_name(g_get_host_name());
  self.set_boot_id(boot_id);
  self.set_machine_uuid(machine_uuid());
  self.set_version(kVersion);
  self.set_record_format(lease::kRecordFormat);
  self.set_peer_version(lease::kPeerVersion);
  for (const record::Rung rung : available_rungs(config, "")) self.add_rungs(rung);
  return self;
}

// The parts of one running daemon, in the order in which they need each other.
class Daemon {
 public:
  // `restart`: ends this daemon, and begins a new one in its place.
  Daemon(Config config, std::function<void()> restart) : config_(std::move(config)), restart_(std::move(restart)) {}

  Result<void> start() {
    const auto boot_id = read_boot_id();
    if (!boot_id) return tl::unexpected(boot_id.error());
    for (const std::string& directory : {config_.state_dir, config_.run_dir, config_.run_dir + "/relays"}) {
      if (auto made = make_directory(directory, directory == config_.run_dir ? 0755 : 0700); !made) return made;
    }
    const auto relays = relay_options(config_);
    if (!relays) return tl::unexpected(relays.error());
    auto home_file = host::HomeFile::open(config_.state_dir + "/home", config_.host_id);
    if (!home_file) return tl::unexpected(home_file.error());
    home_file_ = std::move(*home_file);
    if (auto opened = open_store(*boot_id); !opened) return opened;
    auto listening = api::request_socket(config_.socket_path());
    if (!listening) return tl::unexpected(listening.error());

    if (auto assembled = assemble(*boot_id, *relays, std::move(*listening)); !assembled) return assembled;
    home_file_->set_cluster_id(cluster_id_, [](const Result<void>& stored) {
      if (!stored) log::warning("cannot note the cluster's id in the home file", {{"ERROR", stored.error().message}});
    });
    node_->start();
    usb_bus_ = std::make_unique<host::UsbBus>(config_);
    usb_bus_->start(
        [this](const std::string& device, const host::UsbSighting& sighting) { agent_->on_usb(device, sighting); });
    agent_->start();
    follow_rungs();
    return {};
  }

  // After a restart was asked for: what the daemon that takes this one's place goes on listening on.
  UniqueFd take_listening() { return std::move(listening_); }

  // Calls `ready` once: when requests find this host's devices, or when no coordinator came for kReadyMaxNs.
  void when_ready(const std::function<void(const char* status)>& ready) {
    ready_late_ = run_after(kReadyMaxNs, [this, ready] {
      agent_->when_ready(nullptr);
      ready("serving; this host is not registered with a coordinator yet");
    });
    agent_->when_ready([this, ready] {
      ready_late_.cancel();
      ready("serving");
    });
  }

 private:
  // Who asks from now on waits for the next daemon; who has asked gets his answer first.
  void begin_restart() {
    if (listening_) return;
    listening_ = server_->stop_accepting();
    restart_later_ = run_after(kRestartNs, restart_);
  }

  // QEMU modules come and go while this runs.
  void follow_rungs() {
    const auto look = [this] { agent_->set_rungs(available_rungs(config_, agent_->page_trouble())); };
    agent_->when_page_trouble_changes([this, look] { rungs_later_ = run_after(0, look); });
    module_changes_ = std::make_unique<host::FileWatch>(std::string(host::kModuleStateDir) + "/changed", look);
    look();
  }

  // A cluster of one is on SQLite; with STATE_DIR/cluster there may be others, and the store is on etcd.
  Result<void> open_store(const std::string& boot_id) {
    auto members = cluster::load_members(members_path(config_));
    if (!members) return tl::unexpected(members.error());
    members_ = std::move(*members);
    if (members_) {
      cluster_id_ = members_->cluster_id;
      auto member = open_store_member(config_, *members_, boot_id);
      // Without it the other hosts' members still serve this one.
      if (!member) log::error("this host's store member does not run", {{"ERROR", member.error().message}});
      if (member) store_member_ = std::move(*member);
      auto opened = open_cluster_store(config_, *members_);
      if (!opened) return tl::unexpected(opened.error());
      store_ = std::move(*opened);
      return {};
    }
    store::SqliteOptions options;
    options.path = config_.state_dir + "/usblease.db";
    options.cluster_id = home_file_->cluster_id();
    auto opened = store::open_sqlite_store(options, post);
    if (!opened) return tl::unexpected(opened.error());
    store_ = std::move(*opened);
    cluster_id_ = store::sqlite_cluster_id(*store_);
    return {};
  }

  Result<void> connect_peers() {
    cluster::TransportEvents events = node_->transport_events();
    events.join = [this](const std::string& payload, std::function<void(std::string)> answer) {
      membership_->answer_join(payload, std::move(answer));
    };
    auto opened = open_transport(config_, *members_, std::move(events));
    if (!opened) return tl::unexpected(opened.error());
    transport_ = std::move(*opened);
    cluster::PeerServiceHooks hooks;
    hooks.forwarded = [this](cluster::ForwardedCall call) { return requests_->handle_forwarded(std::move(call)); };
    hooks.other = [this](const std::string& host_id, const peer::PeerRequest& request,
                         std::function<void(peer::PeerAnswer)> answer) {
      return membership_->answer_peer(host_id, request, std::move(answer));
    };
    node_->use(*transport_, std::move(hooks));
    node_->set_members(*members_);
    membership_->follow();
    return {};
  }

  Result<void> assemble(const std::string& boot_id, const host::RelayOptions& relays, UniqueFd listening) {
    cluster::CoordinatorOptions options;
    options.host_id = config_.host_id;
    options.boot_id = boot_id;
    options.cluster_id = cluster_id_;
    options.timing = {config_.ttl_ms, config_.renewal_ms, config_.grace_ms, config_.drift_ppm};
    node_ = std::make_unique<cluster::Node>(store_.get(), options, node_events());
    hypervisor_ = host::make_libvirt_hypervisor({config_.libvirt_uri, config_.libvirt_run_dir});
    usb_gate_ = host::make_usb_gate(config_.run_dir);
    agent_ = std::make_unique<host::HostAgent>(config_, describe_self(config_, boot_id), node_->router(), *hypervisor_,
                                               *home_file_, relays, usb_gate_.get());
    cluster::MembershipHooks hooks;
    hooks.restart = [this] { begin_restart(); };
    hooks.members = [this](const cluster::Members& members) {
      members_ = members;
      node_->set_members(members);
      if (!store_ || !config_.store.endpoints.empty()) return;
      if (auto set = store::set_etcd_endpoints(*store_, store_endpoints(members, config_.host_id)); !set)
        log::warning("the store keeps its old members", {{"ERROR", set.error().message}});
    };
    hooks.retire_store_member = [this](std::function<void()> done) {
      if (!store_member_) return done();
      store_member_->stop([this, done = std::move(done)] {
        store_member_.reset();
        if (auto removed = cluster::EtcdMember::destroy(cluster_directory(config_) + "/etcd"); !removed)
          log::warning("the retired store member's files stay", {{"ERROR", removed.error().message}});
        done();
      });
    };
    hooks.identity = [this](const cluster::Identity& identity) {
      if (auto set = transport_->set_identity(identity); !set)
        log::error("the new certificate is not used between hosts", {{"ERROR", set.error().message}});
      if (!store_ || !config_.store.endpoints.empty()) return;
      if (auto loaded = store::reload_etcd_credentials(*store_); !loaded)
        log::error("the new certificate is not used with the store", {{"ERROR", loaded.error().message}});
    };
    hooks.permit = [this](const std::string& host_id) { transport_->permit(host_id); };
    hooks.forbid = [this](const std::string& host_id) { transport_->forbid(host_id); };
    membership_ = std::make_unique<cluster::ClusterMembership>(
        membership_options(config_, boot_id, cluster_id_, members_.has_value()), store_.get(), *node_,
        std::move(hooks));
    requests_ = std::make_unique<api::Requests>(api::RequestContext{config_, store_.get(), *node_, *agent_, cluster_id_,
                                                                    kVersion, members_.has_value(), membership_.get()});
    api::HelloReply hello;
    hello.set_version(kApiVersion);
    hello.set_host_id(config_.host_id);
    hello.set_host_name(g_get_host_name());
    hello.set_cluster_id(cluster_id_);
    server_ = std::make_unique<api::Server>(
        std::move(listening), api::AccessRules{config_.act_group, config_.read == ReadAccess::kEveryone},
        std::move(hello),
        [this](const api::Caller& caller, const api::ClientFrame& frame, const api::Responder& responder) {
          requests_->handle(caller, frame, responder);
        });
    return members_ ? connect_peers() : Result<void>();
  }

  cluster::NodeEvents node_events() {
    cluster::NodeEvents events;
    events.router.ready = [this] {
      agent_->coordinator_active();
      requests_->on_ready();
    };
    events.router.view = [this](const peer::HostView& view) { agent_->on_view(view); };
    events.router.settled = [this](const std::string& request_id, const command::Reply& reply) {
      agent_->on_settled(request_id, reply);
    };
    events.event = [this](const record::Event& event) { log_event(event); };
    events.active = [this](bool active) {
      if (!active) requests_->on_inactive();
    };
    // A reload after a failed write is no election, but who waited for the state can have it.
    events.loaded = [this] {
      if (node_->router().ready()) requests_->on_ready();
    };
    return events;
  }

  void log_event(const record::Event& event) {
    log::info(event.kind(), {{"DEVICE", event.device()},
                             {"GUEST", event.guest()},
                             {"HOST", event.host()},
                             {"TOKEN", std::to_string(event.token())},
                             {"PRINCIPAL", event.principal()},
                             {"TEXT", event.text()}});
    requests_->on_event(event);
  }

  Config config_;
  std::function<void()> restart_;
  std::string cluster_id_;
  std::unique_ptr<host::HomeFile> home_file_;
  std::unique_ptr<cluster::EtcdMember> store_member_;  // none: a cluster of one, a plain host, or an etcd of the site
  std::unique_ptr<store::Store> store_;
  std::optional<cluster::Members> members_;  // none: a cluster of one
  std::unique_ptr<cluster::Node> node_;
  std::unique_ptr<cluster::TlsTransport> transport_;
  std::unique_ptr<host::Hypervisor> hypervisor_;
  std::unique_ptr<host::UsbGate> usb_gate_;
  std::unique_ptr<host::HostAgent> agent_;
  std::unique_ptr<host::UsbBus> usb_bus_;
  std::unique_ptr<cluster::ClusterMembership> membership_;
  std::unique_ptr<api::Requests> requests_;
  std::unique_ptr<api::Server> server_;
  std::unique_ptr<host::FileWatch> module_changes_;
  SourceHandle rungs_later_;
  SourceHandle ready_late_;
  UniqueFd listening_;  // while it waits to be restarted
  SourceHandle restart_later_;
};

gboolean quit(gpointer loop) {
  log::info("stopping; leases and relays stay");
  api::notify_stopping();
  g_main_loop_quit(static_cast<GMainLoop*>(loop));
  return G_SOURCE_CONTINUE;
}

// With another store and perhaps other peers: nothing of the old daemon stays but its relays and its store member.
int begin_anew(const std::vector<char*>& argv, UniqueFd listening) {
  log::info("starting anew, with what changed in the cluster");
  // The socket of socket activation belongs to systemd, which hands it out only when it starts the service.
  if (getenv("INVOCATION_ID") != nullptr) return kRestartMe;
  if (const auto kept = api::hand_over_socket(std::move(listening)); !kept)
    log::warning("clients are refused for a moment", {{"ERROR", kept.error().message}});
  execv("/proc/self/exe", argv.data());
  log::error("cannot start anew: execv failed; start usbleased again");
  return 1;
}

int run(int argc, char** argv) {
  const std::vector<char*> as_started(argv, argv + argc + 1);  // the parser takes its own out, and the null ends it
  bool version = false;
  const auto arguments = parse_arguments(argc, argv, &version);
  if (!arguments) {
    log::error(arguments.error().message);
    return 2;
  }
  if (version) {
    std::cout << "usbleased " << kVersion << '\n';
    return 0;
  }
  auto config = load_config(arguments->config_path);
  if (!config) {
    log::error(config.error().message);
    return 2;
  }
  if (arguments->check_only) return 0;
  log::set_level(config->log_level);
  if (const auto clock = check_time_namespace(); !clock) {
    log::error(clock.error().message);
    return 1;
  }
  const GPtr<GMainLoop, g_main_loop_unref> loop(g_main_loop_new(nullptr, FALSE));
  g_unix_signal_add(SIGTERM, quit, loop.get());
  g_unix_signal_add(SIGINT, quit, loop.get());
  bool again = false;
  UniqueFd listening;
  {
    Daemon daemon(std::move(*config), [&] {
      again = true;
      g_main_loop_quit(loop.get());
    });
    if (const auto started = daemon.start(); !started) {
      log::error("cannot start: " + started.error().message);
      return 1;
    }
    const api::Watchdog watchdog;
    daemon.when_ready([](const char* status) {
      api::notify_ready(status);
      log::info("ready", {{"VERSION", kVersion}});
    });
    g_main_loop_run(loop.get());
    listening = daemon.take_listening();
  }
  return again ? begin_anew(as_started, std::move(listening)) : 0;
}

}  // namespace
}  // namespace usblease

int main(int argc, char** argv) {
  prctl(PR_SET_NAME, "usbleased");  // one that began anew would be called "exe" in ps and top
  usblease::log::setup("usbleased", usblease::log::Level::kInfo);
  google::protobuf::SetLogHandler(nullptr);  // what does not parse is answered; it needs no second, unstructured log
  return usblease::run(argc, argv);
}
