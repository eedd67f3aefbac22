%% SPDX-License-Identifier: Apache-2.0
%% @doc Has new connections wait until `global' has taken in that old ones are over.
%%
%% `global' tells all nodes that it is connected to of every connection that it loses, and they
%% cut off the node that it names (prevent_overlapping_partitions). A node that was stopped or cut
%% off for too long loses all its connections at once; but `global' hears of one after the other,
%% and sends by the name of the node: also over a connection that has begun meanwhile, and into one
%% that is only being set up, which the VM delivers once it is up. So nodes that are well would be
%% told to cut off others that are. With sockets it is the same.
%%
%% What is kept here belongs to `chatter_node', which hears of nodes that are gone before it hears
%% of a route over which a new connection could come. From the end of a second connection on things
%% are unsettled, until the VM has told of all these ends and `global' has answered since. The end
%% of one connection alone is as it should be: it is the node named that is gone.
-module(chatter_settle).

-export([new/1, node_gone/2, nodeup/2, nodedown/2, done/3, settled/1]).

%% Spawned.
-export([ask_global/2]).

-export_type([settle/0]).

-record(settle, {
    %% The nodes that are connected, as the VM has told.
    up :: #{node() => true},
    %% Those of them that are gone, as Chatter knows.
    gone = #{} :: #{node() => true},
    %% While unsettled: what says that it is over.
    unsettled = none :: reference() | none,
    %% How often things were.
    times = 0 :: non_neg_integer()
}).

-opaque settle() :: #settle{}.

%% Things are settled again after so long, whatever `global' does.
-define(LIMIT_MS, 2000).

%% Before and after `global' is asked: the VM tells one process after the other, and attempts to
%% connect that had begun before are on their way to this module.
-define(BEFORE_MS, 10).
-define(AFTER_MS, 40).

%% @doc So many nodes are connected.
-spec new([node()]) -> settle().
new(Nodes) -> #settle{up = maps:from_keys(Nodes, true)}.

%% @doc Whether new connections may begin, and how often they might not so far.
-spec settled(settle()) -> {ok, non_neg_integer()} | unsettled.
settled(#settle{unsettled = none, times = Times}) -> {ok, Times};
settled(#settle{}) -> unsettled.

%% @doc A node is gone: its connections end. The caller gets messages `{settled, Ref, How}', for
%% done/3.
-spec node_gone(binary(), settle()) -> settle().
node_gone(Name, #settle{up = Up, gone = Gone} = S) ->
    try binary_to_existing_atom(Name) of
        Node when is_map_key(Node, Up) -> unsettle(S#settle{gone = Gone#{Node => true}});
        _ -> S
    catch
        error:badarg -> S
    end.

unsettle(#settle{gone = Gone, unsettled = none, times = Times} = S) when map_size(Gone) > 1 ->
    Ref = make_ref(),
    _ = erlang:send_after(?LIMIT_MS, self(), {settled, Ref, late}),
    S#settle{unsettled = Ref, times = Times + 1};
unsettle(S) ->
    S.

%% @doc The VM says that a node is connected.
-spec nodeup(node(), settle()) -> settle().
nodeup(Node, #settle{up = Up} = S) -> S#settle{up = Up#{Node => true}}.

%% @doc The VM says that a node is not connected any more.
-spec nodedown(node(), settle()) -> settle().
nodedown(Node, #settle{up = Up, gone = Gone, unsettled = Ref} = S) ->
    Left = maps:remove(Node, Gone),
    _ = case Ref =/= none andalso map_size(Gone) > 0 andalso map_size(Left) =:= 0 of
            true -> spawn(?MODULE, ask_global, [self(), Ref]);
            false -> ok
        end,
    S#settle{up = maps:remove(Node, Up), gone = Left}.

%% @private
-spec ask_global(pid(), reference()) -> ok.
ask_global(From, Ref) ->
    receive after ?BEFORE_MS -> ok end,
    %% Its answer comes after it has dealt with what it was told before.
    _ = catch gen_server:call(global_name_server, get_known, ?LIMIT_MS),
    receive after ?AFTER_MS -> ok end,
    From ! {settled, Ref, answered},
    ok.

%% @doc `global' has answered, unless more nodes are gone since, or it is too late.
-spec done(reference(), answered | late, settle()) -> settle().
done(Ref, How, #settle{unsettled = Ref, gone = Gone} = S)
  when How =:= late; map_size(Gone) =:= 0 ->
    S#settle{gone = #{}, unsettled = none};
done(_, _, S) -> S.
