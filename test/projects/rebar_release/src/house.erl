-module(house).

-export([who/0]).

%% Called from the other node.
-spec who() -> {node(), interactive | embedded}.
who() -> {node(), code:get_mode()}.
