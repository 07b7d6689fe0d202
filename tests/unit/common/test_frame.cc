// Bytes in, frames out: any cut of the stream gives the same frames, and no length gets past the bound.
#include <algorithm>
#include <vector>

#include "common/frame.h"
#include "tests/unit/common/check_run.h"

using namespace usblease;

namespace {

std::vector<std::string> read_in_pieces(const std::string& stream, std::size_t piece) {
  FrameReader reader;
  std::vector<std::string> frames;
  for (std::size_t at = 0; at < stream.size(); at += piece) {
    reader.push({stream.data() + at, std::min(piece, stream.size() - at)});
    for (;;) {
      const auto next = reader.next();
      ck_assert_ok(next);
      if (!next->has_value()) break;
      frames.push_back(**next);
    }
  }
  ck_assert_uint_eq(reader.pending(), 0);
  return frames;
}

START_TEST(any_cut_gives_the_same_frames) {
  const std::vector<std::string> payloads = {"", "a", std::string(300, 'b'), std::string("\0\0\0\1", 4), "end"};
  std::string stream;
  for (const auto& payload : payloads) stream += encode_frame(payload);
  for (std::size_t piece = 1; piece <= stream.size(); ++piece) ck_assert(read_in_pieces(stream, piece) == payloads);
}
END_TEST

START_TEST(the_bound_is_inclusive) {
  FrameReader reader;
  const std::string largest(kFramePayloadMax, 'x');
  const std::string bytes = encode_frame(largest);
  reader.push(bytes);
  auto next = reader.next();
  ck_assert_ok(next);
  ck_assert(next->has_value() && **next == largest);

  const char too_long[] = {0x00, 0x10, 0x00, 0x01};
  reader.push(too_long);
  next = reader.next();
  ck_assert_fails(next, ErrorCode::kBadInput, "a frame of 1048577 bytes was announced; at most 1048576 are allowed");
}
END_TEST

// The length alone is refused: nothing is collected for it.
START_TEST(garbage_is_refused_at_once) {
  FrameReader reader;
  const std::string garbage = "GET / HTTP/1.1\r\n";
  reader.push(garbage);
  ck_assert_fails(reader.next(), ErrorCode::kBadInput, "at most");
}
END_TEST

START_TEST(a_smaller_bound) {
  FrameReader reader(10);
  reader.push(encode_frame("0123456789"));
  ck_assert_ok(reader.next());
  reader.push(encode_frame("0123456789a"));
  ck_assert_fails(reader.next(), ErrorCode::kBadInput, "at most 10 are allowed");
}
END_TEST

// A long stream whose reads never end where a frame ends.
START_TEST(a_stream_that_is_never_empty) {
  FrameReader reader(1000);
  const std::string frame = encode_frame(std::string(600, 'y'));
  std::string stream;
  for (int i = 0; i < 200; ++i) stream += frame;
  std::size_t frames = 0;
  for (std::size_t at = 0; at < stream.size(); at += 601) {
    reader.push({stream.data() + at, std::min<std::size_t>(601, stream.size() - at)});
    while (true) {
      const auto next = reader.next();
      ck_assert_ok(next);
      if (!next->has_value()) break;
      ck_assert_text_eq(**next, std::string(600, 'y'));
      ++frames;
    }
    ck_assert_uint_lt(reader.pending(), 1204);
  }
  ck_assert_uint_eq(frames, 200);
}
END_TEST

}  // namespace

int main() {
  Suite* const suite = suite_create("frame");
  TCase* const all = tcase_create("frame");
  tcase_add_test(all, any_cut_gives_the_same_frames);
  tcase_add_test(all, the_bound_is_inclusive);
  tcase_add_test(all, garbage_is_refused_at_once);
  tcase_add_test(all, a_smaller_bound);
  tcase_add_test(all, a_stream_that_is_never_empty);
  suite_add_tcase(suite, all);
  return test::run_suite(suite);
}
