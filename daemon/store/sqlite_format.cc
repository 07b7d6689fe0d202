#include "daemon/store/sqlite_format.h"

#include <fcntl.h>
#include <glib.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <filesystem>

#include "common/fd.h"
#include "common/text.h"
#include "daemon/store/bytes.h"
#include "daemon/store/envelope.h"
#include "daemon/store/wal_check.h"

namespace usblease::store {
namespace {

constexpr std::string_view kMetaKey = "usblease database meta";
constexpr std::size_t kDatabaseIdBytes = 32;
constexpr std::size_t kMetaFixedBytes = kDatabaseIdBytes + 3 * sizeof(std::uint64_t);
constexpr std::size_t kHeaderBytes = 100;
constexpr std::size_t kUserVersionAt = 60;
constexpr std::size_t kApplicationIdAt = 68;

struct FixedByte {
  std::size_t at;
  unsigned char value;
};

// https://sqlite.org/fileformat2.html section 1.3: what never changes in a database of ours. Bytes 18 and 19 are the
// WAL mode: with another value there SQLite would not look at the log at all.
constexpr std::array kFixedBytes = {FixedByte{16, kPageBytes >> 8},
                                    FixedByte{17, 0},
                                    FixedByte{18, 2},
                                    FixedByte{19, 2},
                                    FixedByte{20, 0},
                                    FixedByte{21, 64},
                                    FixedByte{22, 32},
                                    FixedByte{23, 32},
                                    FixedByte{44, 0},
                                    FixedByte{45, 0},
                                    FixedByte{46, 0},
                                    FixedByte{47, 4},
                                    FixedByte{52, 0},
                                    FixedByte{53, 0},
                                    FixedByte{54, 0},
                                    FixedByte{55, 0},
                                    FixedByte{56, 0},
                                    FixedByte{57, 0},
                                    FixedByte{58, 0},
                                    FixedByte{59, 1},
                                    FixedByte{64, 0},
                                    FixedByte{65, 0},
                                    FixedByte{66, 0},
                                    FixedByte{67, 0}};

Result<std::string> read_header(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return fail_errno("cannot open " + path, errno);
  std::string bytes(kHeaderBytes, '\0');
  const ssize_t got = pread(fd.get(), bytes.data(), bytes.size(), 0);
  if (got < 0) return fail_errno("cannot read " + path, errno);
  bytes.resize(static_cast<std::size_t>(got));
  return bytes;
}

tl::unexpected<Error> bad(const std::string& what) { return fail(ErrorCode::kRefused, what); }

Result<void> check_pages(sqlite3* db) {
  const auto statement = prepare(db, "PRAGMA integrity_check(1)");
  if (!statement) return bad(statement.error().message);
  Use use(*statement);
  if (use.step() != SQLITE_ROW) return bad("its pages cannot be checked: " + sqlite_message(db));
  const std::string said = escape_text(use.bytes(0));
  if (said != "ok") return bad("its pages do not check: " + said);
  return {};
}

// A flipped bit in the schema's text could change what a column means.
Result<void> check_schema(sqlite3* db) {
  const auto statement = prepare(db, "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY rowid");
  if (!statement) return bad("its schema cannot be read: " + statement.error().message);
  Use use(*statement);
  struct Table {
    std::string_view name;
    std::string_view sql;
  };
  for (const Table& table : {Table{"kv", kCreateKv}, Table{"meta", kCreateMeta}}) {
    const bool same = use.step() == SQLITE_ROW && use.bytes(0) == "table" && use.bytes(1) == table.name &&
                      use.bytes(2) == table.name && use.bytes(3) == table.sql;
    if (!same) return bad("its schema is not usblease's (table " + std::string(table.name) + ")");
  }
  if (use.step() != SQLITE_DONE) return bad("its schema has more than usblease's tables");
  return {};
}

Result<void> check_rows(sqlite3* db, const DatabaseMeta& meta) {
  const auto statement = prepare(db, "SELECT " + std::string(kRowColumns) + " FROM kv ORDER BY key");
  if (!statement) return bad("its records cannot be read: " + statement.error().message);
  Use use(*statement);
  DatabaseMeta found = meta;
  found.rows = 0;
  found.digest = 0;
  std::string last_key;
  for (;;) {
    const int rc = use.step();
    if (rc == SQLITE_DONE) break;
    if (rc != SQLITE_ROW) return bad("its records cannot be read: " + sqlite_message(db));
    const Row row = read_row(use);
    const auto entry = open_row(row);
    if (!entry) return bad(entry.error().message);
    if (entry->key <= last_key) return bad("record \"" + escape_text(entry->key) + "\" is out of order");
    if (entry->mod_revision > meta.revision) {
      return bad("record \"" + escape_text(entry->key) + "\" is newer than the database says it is itself");
    }
    last_key = entry->key;
    ++found.rows;
    found.digest += row.sum;
  }
  if (found == meta) return {};
  return bad("its records are not those of its last transaction: it has " + std::to_string(found.rows) + " of " +
             std::to_string(meta.rows) + ", or old ones among them");
}

}  // namespace

tl::unexpected<Error> damaged_database(const std::string& path, const std::string& what) {
  return fail(ErrorCode::kRefused, path + ": " + what + ". Nothing was changed. Copy " + path +
                                       "* away, check the disk, and put back " + path + ", " + path +
                                       "-wal (if there is one) and " + path +
                                       ".mark from one backup; then run 'usblease cluster repair --new-epoch'");
}

std::string encode_meta(const DatabaseMeta& meta) {
  std::string payload = meta.database_id;
  put_be(payload, meta.revision);
  put_be(payload, meta.rows);
  put_be(payload, meta.digest);
  payload += meta.cluster_id;
  return seal(kMetaKey, payload);
}

Result<DatabaseMeta> load_meta(sqlite3* db) {
  const auto statement = prepare(db, "SELECT sealed FROM meta WHERE id = 1");
  if (!statement) return bad("its meta record cannot be read: " + statement.error().message);
  Use use(*statement);
  const int rc = use.step();
  if (rc == SQLITE_DONE) return bad("its meta record is missing");
  if (rc != SQLITE_ROW) return bad("its meta record cannot be read: " + sqlite_message(db));
  const auto payload = unseal(kMetaKey, use.bytes(0));
  if (!payload) return bad(payload.error().message);
  if (payload->size() < kMetaFixedBytes) return bad("its meta record is too short");
  DatabaseMeta meta;
  meta.database_id = payload->substr(0, kDatabaseIdBytes);
  meta.revision = get_be<std::uint64_t>(*payload, kDatabaseIdBytes);
  meta.rows = get_be<std::uint64_t>(*payload, kDatabaseIdBytes + 8);
  meta.digest = get_be<std::uint64_t>(*payload, kDatabaseIdBytes + 16);
  meta.cluster_id = payload->substr(kMetaFixedBytes);
  return meta;
}

Row read_row(const Use& use) {
  return {use.bytes(0), use.bytes(1), use.number(2), use.number(3), use.number(4) != 0, use.number(5)};
}

std::uint64_t row_sum(const Row& row) {
  std::string numbers;
  put_be(numbers, static_cast<std::uint64_t>(row.key.size()));
  put_be(numbers, row.create_revision);
  put_be(numbers, row.mod_revision);
  numbers += row.owned ? '\1' : '\0';
  const std::unique_ptr<GChecksum, decltype(&g_checksum_free)> sum(g_checksum_new(G_CHECKSUM_SHA256), g_checksum_free);
  for (const std::string_view part : {std::string_view(numbers), row.key, row.sealed}) {
    g_checksum_update(sum.get(), reinterpret_cast<const guchar*>(part.data()), static_cast<gssize>(part.size()));
  }
  std::array<guint8, 32> digest{};
  gsize size = digest.size();
  g_checksum_get_digest(sum.get(), digest.data(), &size);
  return get_be<std::uint64_t>(std::string_view(reinterpret_cast<const char*>(digest.data()), digest.size()), 0);
}

Result<Entry> open_row(const Row& row) {
  const std::string name = "record \"" + escape_text(row.key.substr(0, kKeyMax)) + "\" ";
  if (row.key.empty() || row.key.size() > kKeyMax) return bad(name + "has a key of a wrong length");
  auto payload = unseal(row.key, row.sealed);
  if (!payload) return tl::unexpected(payload.error());
  if (row.sum != row_sum(row)) return bad(name + "is damaged: the checksum of its row does not match");
  return Entry{std::string(row.key), std::move(*payload), row.create_revision, row.mod_revision};
}

Result<void> check_database_header(const std::string& path) {
  const auto bytes = read_header(path);
  if (!bytes) return tl::unexpected(bytes.error());
  if (bytes->size() < kHeaderBytes) {
    return damaged_database(path,
                            "the database is empty or cut off: it has " + std::to_string(bytes->size()) + " bytes");
  }
  const std::string_view magic("SQLite format 3\0", 16);
  if (std::string_view(*bytes).substr(0, magic.size()) != magic) {
    return damaged_database(path, "this is not a database, or its first bytes are damaged");
  }
  if (get_be<std::uint32_t>(*bytes, kApplicationIdAt) != kApplicationId) {
    return damaged_database(path, "this is a database, but not one of usblease (or its header is damaged)");
  }
  const auto format = get_be<std::uint32_t>(*bytes, kUserVersionAt);
  if (format > kDatabaseFormat) {
    return fail(ErrorCode::kRefused, path + ": the database has format " + std::to_string(format) +
                                         ", newer than this program's " + std::to_string(kDatabaseFormat) +
                                         ". Nothing was changed. Install the version of usblease that wrote it");
  }
  if (format != kDatabaseFormat) return damaged_database(path, "there is no database format " + std::to_string(format));
  for (const FixedByte& fixed : kFixedBytes) {
    if (static_cast<unsigned char>((*bytes)[fixed.at]) != fixed.value) {
      return damaged_database(path, "byte " + std::to_string(fixed.at) + " of the database's header is damaged");
    }
  }
  return {};
}

Result<void> check_database(sqlite3* db, const DatabaseMeta& meta) {
  if (auto schema = check_schema(db); !schema) return schema;
  if (auto pages = check_pages(db); !pages) return pages;
  return check_rows(db, meta);
}

Result<void> create_database(const std::string& path, const DatabaseMeta& meta) {
  std::error_code ignored;
  for (const char* suffix : {"", "-journal", "-wal"}) std::filesystem::remove(path + suffix, ignored);
  const UniqueFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!fd) return fail_errno("cannot create " + path, errno);
  auto db = open_database(path);
  if (!db) return tl::unexpected(db.error());
  const std::string hex = [&] {
    std::string out;
    for (const char byte : encode_meta(meta)) {
      std::array<char, 3> digits{};
      std::snprintf(digits.data(), digits.size(), "%02x", static_cast<unsigned>(static_cast<unsigned char>(byte)));
      out += digits.data();
    }
    return out;
  }();
  const std::string sql = "PRAGMA locking_mode=EXCLUSIVE; PRAGMA page_size=" + std::to_string(kPageBytes) +
                          "; PRAGMA auto_vacuum=NONE; PRAGMA encoding='UTF-8'; PRAGMA synchronous=FULL; BEGIN; " +
                          "PRAGMA application_id=" + std::to_string(kApplicationId) +
                          "; PRAGMA user_version=" + std::to_string(kDatabaseFormat) + "; " + std::string(kCreateKv) +
                          "; " + std::string(kCreateMeta) + "; INSERT INTO meta VALUES(1, x'" + hex +
                          "'); COMMIT; PRAGMA journal_mode=WAL";
  if (auto made = run_sql(db->get(), sql); !made) {
    return fail(ErrorCode::kUnavailable, "cannot create " + path + ": " + made.error().message);
  }
  db->reset();
  std::filesystem::remove(path + "-wal", ignored);  // empty: nothing was written since the change of mode
  if (fsync(fd.get()) != 0) return fail_errno("cannot sync " + path, errno);
  return {};
}

}  // namespace usblease::store
