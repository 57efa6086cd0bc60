// What each of several replays leaves behind, copied for whoever reads it after the last one.
#pragma once

#include <cstddef>
#include <cstring>
#include <vector>

namespace sdengine {

class ReplayCopies {
 public:
  // `rows` has room for `size` bytes of every replay.
  void add(const char* source, size_t size, char* rows) { pieces_.push_back({source, size, rows}); }

  // Copies what lies there now to the replay's row.
  void copy(int replay) const {
    for (const Piece& piece : pieces_) {
      std::memcpy(piece.rows + replay * piece.size, piece.source, piece.size);
    }
  }

 private:
  struct Piece {
    const char* source;
    size_t size;
    char* rows;
  };
  std::vector<Piece> pieces_;
};

}  // namespace sdengine
