%% The part of the demo about multicast: three nodes that are told nothing of each other find each
%% other, link, and greet all others by broadcast.
-module(chatter_demo_found).

-export([run/0]).
-export([listen/0, greet/0, greetings/0]).

-define(NAMES, [found1, found2, found3]).
-define(FOUND_MS, 20000).

%% How many steps failed.
-spec run() -> non_neg_integer().
run() ->
    chatter_demo:head("Three more nodes, told nothing of each other, on one network segment"),
    case chatter_demo:step("start the nodes", fun start/0) of
        {ok, Peers} ->
            chatter_demo:failures(
              [chatter_demo:step("found by multicast", fun() -> found(Peers) end),
               chatter_demo:step("greet by broadcast", fun() -> greet(Peers) end)]);
        failed ->
            1
    end.

%% A TTL of 0 keeps the datagrams of the demo on this host; all else is as it comes.
start() ->
    Opts = #{chatter => [{multicast, true}, {multicast_ttl, 0}],
             args => ["-pa", filename:dirname(code:which(?MODULE))]},
    Peers = [chatter_cluster:start(Name, Opts) || Name <- ?NAMES],
    {ok, Peers, "~s", [lists:join(", ", [atom_to_list(Node) || #{node := Node} <- Peers])]}.

found(Peers) ->
    Others = length(Peers) - 1,
    Knows = fun(Peer) ->
                    #{broadcast := #{proofs := Hear}} = call(Peer, chatter, info, []),
                    {length(call(Peer, chatter, nodes, [])), Hear, length(netids(Peer))}
            end,
    await(fun() -> [Knows(Peer) || Peer <- Peers] end,
          lists:duplicate(length(Peers), {Others, Others, Others})),
    Links = lists:sum([length(call(Peer, chatter, links, [])) || Peer <- Peers]) div 2,
    {ok, "each knows the ~b others and is heard by them; ~b links",
     [Others, Links]}.

netids(Peer) -> call(Peer, chatter, peers, []).

greet(Peers) ->
    [ok = call(Peer, ?MODULE, listen, []) || Peer <- Peers],
    [ok = call(Peer, ?MODULE, greet, []) || Peer <- Peers],
    All = lists:sort([Node || #{node := Node} <- Peers]),
    await(fun() -> [lists:sort(call(Peer, ?MODULE, greetings, [])) || Peer <- Peers] end,
          [lists:delete(Node, All) || #{node := Node} <- Peers]),
    Sum = fun(Key) ->
                  lists:sum([maps:get(Key, maps:get(broadcast, call(Peer, chatter, info, [])))
                             || Peer <- Peers])
          end,
    {ok, "each has the greetings of the others, once; so far ~b messages came by multicast, "
     "~b packets went over links", [Sum(cast_messages), Sum(tree_packets)]}.

await(Look, Wanted) ->
    chatter_cluster:wait_until(fun() ->
                                       case Look() of
                                           Wanted -> true;
                                           Other -> Other
                                       end
                               end, ?FOUND_MS).

call(Peer, Module, Function, Args) -> chatter_cluster:call(Peer, Module, Function, Args).

%%% On the nodes

%% From now on the node keeps who has greeted it.
-spec listen() -> ok.
listen() ->
    Self = self(),
    Pid = spawn(fun() ->
                        ok = chatter:subscribe(greeting, 100),
                        true = register(greeted, self()),
                        Self ! {listening, self()},
                        listening([])
                end),
    receive {listening, Pid} -> ok end.

listening(Seen) ->
    receive
        {chatter_broadcast, From, {greeting, From}} -> listening([From | Seen]);
        {seen, To} -> To ! {seen, Seen}, listening(Seen)
    end.

-spec greet() -> ok.
greet() ->
    chatter:broadcast(all, {greeting, node()}).

-spec greetings() -> [node()].
greetings() ->
    greeted ! {seen, self()},
    receive {seen, Seen} -> Seen end.
